"""Policy: loads the frozen causal LM that heads are trained on, and takes h to its logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from trimtab.guidance.errors import PolicyError, first_line
from trimtab.guidance.heads.fingerprint import PolicyIdentity, identify
from trimtab.guidance.locate import must_be_local
from trimtab.guidance.model_names import find_model, name_of
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


def load_policy(
    path: str | Path,
    *,
    name: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    chat_template: str | None = None,
    with_padding: bool = False,
) -> Policy:
    """Loads a folder, hub id, GGUF file, or the default model.

    name: what to call it; by default after the path.
    dtype: auto is float32 on a CPU and the checkpoint's own elsewhere. float16 is rounded to after loading:
    small weights lose bits that heads know the policy by.
    chat_template: replaces the tokenizer's.
    with_padding: keep the checkpoint's matrices as they are, to save them again.

    Raises:
        PolicyError: one line that names the model and the fix.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise PolicyError(f"--device {device}: this torch sees no CUDA device; use --device cpu")
    name, path = name or name_of(path), find_model(path)
    local = must_be_local(path)
    _check_config(path, local)
    model = _load_model(path, _dtype_to_load(dtype, device), local).to(device)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=local, trust_remote_code=False)
    except Exception as error:  # as above: files of the tokenizer may hold anything
        raise PolicyError(f"model '{path}' has no tokenizer that loads: {first_line(error)}") from error
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    return as_policy(
        model,
        tokenizer,
        name=name,
        with_padding=with_padding,
        round_to=torch.float16 if dtype == "float16" else None,
    )


def _dtype_to_load(dtype: str, device: str) -> str | torch.dtype:
    if dtype in ("auto", "float16"):
        return torch.float32 if device == "cpu" else "auto"
    found: torch.dtype = getattr(torch, dtype)
    return found


def _load_model(path: str | Path, dtype: str | torch.dtype, local: bool) -> PreTrainedModel:
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=local,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # whatever a corrupt checkpoint makes the loader raise
        raise PolicyError(
            f"model '{path}' cannot be loaded: {first_line(error)}; name a causal LM's folder, or copy its "
            "files again, with weights as safetensors"
        ) from error
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise PolicyError(f"model '{path}' lacks weights ({missing}, …); save the whole model")
    loaded: PreTrainedModel = model
    return loaded


def _check_config(path: str | Path, local: bool) -> None:
    """Before gigabytes are read."""
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=local, trust_remote_code=False)
    except Exception as error:  # each architecture checks its configuration in a way of its own
        if not Path(path).exists():
            message = (
                f"model '{path}' is neither a folder nor in the local cache, and no hub can be reached; "
                "name a folder that holds config.json"
            )
        else:
            message = f"model '{path}' has no config.json that transformers can read: {first_line(error)}"
        raise PolicyError(message) from error
    if getattr(config, "is_encoder_decoder", False):
        raise PolicyError(f"model '{path}' is an encoder-decoder: a policy is a causal LM")
    if getattr(config, "quantization_config", None):
        raise PolicyError(f"model '{path}' is quantised: take its unquantised weights")


def as_policy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str,
    with_padding: bool = False,
    round_to: torch.dtype | None = None,
) -> Policy:
    """Freezes a loaded model, and cuts the padding off its output embedding unless that is to stay. round_to:
    the dtype of its weights once they have told who it is.

    Raises PolicyError where it has no output embedding.
    """
    model.eval().requires_grad_(False)
    identity = identify(model, tokenizer, name)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(round_to or parameter.dtype)
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
