"""The frozen causal LM that heads are trained on: loading it, and from h to its logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from trimtab.guidance.errors import PolicyError
from trimtab.guidance.heads.fingerprint import PolicyIdentity, identify
from trimtab.guidance.locate import must_be_local, name_of
from trimtab.guidance.text.ends import reply_ends


@dataclass(frozen=True, slots=True)
class Policy:
    """V counts the tokens of the tokenizer; rows of the checkpoint that pad its matrices are left out.

    has_linear_tail: logits are exactly h Wᵀ; else (softcap, scale, bias) the model's own tail runs.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    identity: PolicyIdentity
    has_linear_tail: bool

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end a reply."""
        return reply_ends(self.model, self.tokenizer)

    @property
    def vocab_size(self) -> int:
        return len(self.lm_head)

    @property
    def lm_head(self) -> Tensor:
        """W [V, d]"""
        weight: Tensor = self.model.get_output_embeddings().weight.detach()
        return weight

    @property
    def device(self) -> torch.device:
        return self.lm_head.device

    @torch.no_grad()
    def logits(self, h: Tensor) -> Tensor:
        """z f32[N, V] of what the output embedding reads, h [N, d]."""
        h = h.to(self.lm_head.dtype)
        z = F.linear(h, self.lm_head) if self.has_linear_tail else _run_tail(self.model, h)
        return z.float()

    @torch.no_grad()
    def write_logits(self, h: Tensor, out: Tensor) -> None:
        """`logits` into memory that is there, f32[N, V]."""
        if self.has_linear_tail and self.lm_head.dtype == out.dtype:
            torch.mm(h.to(out.dtype), self.lm_head.T, out=out)
        else:
            out.copy_(self.logits(h))


def load_policy(path: str | Path, *, device: str = "auto", with_padding: bool = False) -> Policy:
    """Loads a folder or hub id: float32 on a CPU, the checkpoint's own dtype elsewhere.

    with_padding: keep the checkpoint's matrices as they are, to save them again.

    Raises:
        PolicyError: one line that names the model and the fix.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float32 if device == "cpu" else "auto"
    local = must_be_local(path)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, use_safetensors=True, local_files_only=local
        )
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=local)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise PolicyError(f"model '{path}' cannot be loaded ({reason}): name a causal LM's folder") from error
    return as_policy(model.to(device), tokenizer, name=name_of(path), with_padding=with_padding)


def as_policy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str, with_padding: bool = False
) -> Policy:
    """Freezes a loaded model, and cuts the padding off its output embedding unless that is to stay.

    Raises PolicyError where it has none.
    """
    model.eval().requires_grad_(False)
    identity = identify(model, tokenizer, name)
    if not with_padding:
        cut_padding(model, tokenizer)
    return Policy(model, tokenizer, identity, has_linear_tail(model))


def cut_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Leaves out the last rows of the output embedding, which a checkpoint is padded with and no token has:
    none of them is ever drawn, nor counted in a probability. Memory is shared with what there was."""
    layer = model.get_output_embeddings()
    num_tokens = max(tokenizer.get_vocab().values(), default=0) + 1
    if num_tokens >= len(layer.weight):
        return
    assert layer is not model.get_input_embeddings(), f"{type(model).__name__} has one module for both ends"
    layer.weight = nn.Parameter(layer.weight.detach()[:num_tokens], requires_grad=False)
    if getattr(layer, "bias", None) is not None:
        layer.bias = nn.Parameter(layer.bias.detach()[:num_tokens], requires_grad=False)
    layer.out_features = num_tokens


@contextmanager
def output_embedding_input(
    model: PreTrainedModel, replace: Callable[[Tensor], Tensor]
) -> Iterator[list[Tensor]]:
    """Within, each call of the model appends what its output embedding was about to read, [B, T, d], to the
    list, and the output embedding reads replace(h) instead."""
    seen: list[Tensor] = []

    def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        seen.append(args[0])
        return (replace(args[0]), *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()


@torch.no_grad()
def _run_tail(model: PreTrainedModel, h: Tensor) -> Tensor:
    """The model's own logits [N, V] of h [N, d], got by handing h to its output embedding."""
    one_token = torch.zeros(1, 1, dtype=torch.long, device=h.device)
    with output_embedding_input(model, lambda _: h[None]):
        logits: Tensor = model(input_ids=one_token, use_cache=False).logits
    return logits[0]


@torch.no_grad()
def has_linear_tail(model: PreTrainedModel) -> bool:
    """Whether the model's logits are exactly h Wᵀ, tried on random h."""
    lm_head = model.get_output_embeddings().weight
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(4, lm_head.shape[1], generator=generator).to(lm_head)
    return torch.equal(F.linear(h, lm_head), _run_tail(model, h))
