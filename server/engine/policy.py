"""The frozen causal LM: loading, what it can do, and the reasons to refuse it."""

from __future__ import annotations

import itertools
import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from trimtab.guidance.errors import ModelError, PolicyError
from trimtab.guidance.heads.fingerprint import PolicyIdentity, identify
from trimtab.guidance.locate import must_be_local, name_of
from trimtab.guidance.policy import cut_padding, has_linear_tail, output_embedding_input
from trimtab.guidance.text.ends import end_of_reply, reply_ends
from trimtab.server.engine.attention.base import UnsupportedAttentionError
from trimtab.server.engine.attention.probe import probe_layers
from trimtab.server.engine.detokenizer import TextDecoder
from trimtab.server.engine.fast_modules import can_pack, pack_policy, packed_linear
from trimtab.server.engine.kv_cache import LayerShape

if TYPE_CHECKING:
    from trimtab.server.engine.compiled_decode import CompiledDecode

logger = logging.getLogger(__name__)
DEFAULT_MAX_MODEL_LEN = 2048
_attention_ids = itertools.count()


@contextmanager
def refusing(model: str) -> Iterator[None]:
    """Within, whatever an architecture of an unforeseen make raises is a ModelError that names `model`."""
    try:
        yield
    except ModelError:
        raise
    except UnsupportedAttentionError as error:
        raise ModelError(f"{model} cannot be served: {error}") from error
    except Exception as error:
        reason = f"{type(error).__name__}: {_first_line(error)}"
        raise ModelError(f"{model} cannot be served: it fails when it is tried ({reason})") from error


@dataclass(slots=True)
class Policy:
    """An unmodified Hugging Face causal LM.

    identity: what heads and features know the policy by, taken from its weights as they were loaded.
    eos_token_ids: the tokens that end any reply.
    vocab_size: V, the tokens of the tokenizer: see guidance.policy.cut_padding.
    reply_end_id: the token that ends a reply, appended before a reward part reads it; None without one.
    has_linear_tail: logits are exactly `h Wᵀ`; otherwise they go through the model's own tail (softcap,
    scale, bias), and the model is always run to its end.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    layers: tuple[LayerShape, ...]
    max_model_len: int
    eos_token_ids: tuple[int, ...]
    identity: PolicyIdentity
    reply_end_id: int | None = None
    has_linear_tail: bool = False
    packed_lm_head: Tensor | None = None
    compiled_decode: CompiledDecode | None = None
    text: TextDecoder = field(init=False)

    def __post_init__(self) -> None:
        self.text = TextDecoder(self.tokenizer)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def lm_head(self) -> Tensor:
        """[V, d]"""
        return self.model.get_output_embeddings().weight

    @property
    def vocab_size(self) -> int:
        return self.lm_head.shape[0]

    def project(self, columns: Tensor) -> Tensor:
        """columns [N, d] times the output embedding: [N, V]. For h these are logits if the tail is linear."""
        if self.packed_lm_head is not None:
            return packed_linear(self.packed_lm_head, None, columns)
        return nn.functional.linear(columns, self.lm_head)

    def use_attention(self, function: Callable[..., Any] | str) -> None:
        """Route the model's attention through `function`, or through one of transformers' own by name.

        transformers keeps what is registered for good, so `function` is referred to weakly."""
        if isinstance(function, str):
            self.model.set_attn_implementation(function)
            return
        name = f"trimtab_{next(_attention_ids)}"
        reference = weakref.ref(function)

        def attend(*args: Any, **kwargs: Any) -> Any:
            held = reference()
            assert held is not None, "the runner that this attention belongs to is gone"
            return held(*args, **kwargs)

        AttentionInterface.register(name, attend)
        self.model.set_attn_implementation(name)

    def forward(
        self, input_ids: Tensor, positions: Tensor, outputs: Tensor, num_read: int = 0
    ) -> tuple[Tensor, Tensor | None]:
        """Run tokens [1, T]; return h [K, d] at the asked positions, and logits [K − num_read, V] of all but
        the last num_read of them when the tail is the model's own. h is what `get_output_embeddings()`
        reads."""
        if self.has_linear_tail:
            body = self.model.base_model
            hidden = body(input_ids=input_ids, position_ids=positions, use_cache=False)[0]
            return hidden[0].index_select(0, outputs), None
        return forward_with_hidden(self.model, input_ids, positions, outputs, num_read)


def forward_with_hidden(
    model: PreTrainedModel, input_ids: Tensor, positions: Tensor, outputs: Tensor, num_read: int = 0
) -> tuple[Tensor, Tensor]:
    """h [K, d] at the asked positions, and the model's own logits [K − num_read, V] at all but the last
    num_read, with the tail run only there."""
    scored = outputs[: len(outputs) - num_read]
    with output_embedding_input(model, lambda h: h[:, scored]) as seen:
        logits = model(input_ids=input_ids, position_ids=positions, use_cache=False).logits
    return seen[0][0].index_select(0, outputs), logits[0]


def load_policy(
    path: str | Path,
    *,
    name: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    max_model_len: int | None = None,
    pack_weights: bool = True,
    chat_template: str | None = None,
) -> Policy:
    """Load a folder or hub id.

    dtype: float16 is rounded to after loading: small weights lose bits that heads know the policy by.
    pack_weights: see packed_linear. chat_template: replaces the tokenizer's.
    Raises ModelError with one line that names the model and the fix.
    """
    is_rounded = dtype == "float16"
    name = name or name_of(path)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(f"--device {device}: this torch sees no CUDA device; use --device cpu")
    try:
        local = must_be_local(path)
    except PolicyError as error:
        raise ModelError(str(error)) from None
    config = _load_config(path, local)
    _refuse_by_config(str(path), config)
    if dtype == "auto" or is_rounded:
        dtype = "float32" if device == "cpu" else str(config.dtype or torch.bfloat16).removeprefix("torch.")
    model = _load_model(path, getattr(torch, dtype), local).to(device).eval().requires_grad_(False)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=local)
    except (OSError, ValueError) as error:
        raise ModelError(f"model '{path}' has no tokenizer that loads: {_first_line(error)}") from error
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    limit = _pin_rope(str(path), model, max_model_len)
    with refusing(f"model '{path}' ({type(model).__name__})"):
        identity = identify(model, tokenizer, name)
        if is_rounded:
            for parameter in model.parameters():
                parameter.data = parameter.data.to(torch.float16)
        cut_padding(model, tokenizer)
        policy = Policy(
            name=name,
            identity=identity,
            model=model,
            tokenizer=tokenizer,
            layers=_discover_layers(model, limit),
            max_model_len=limit,
            eos_token_ids=reply_ends(model, tokenizer),
        )
        policy.has_linear_tail = has_linear_tail(model) and _body_feeds_lm_head(model)
    policy.reply_end_id = _reply_end_id(tokenizer, is_chat=bool(tokenizer.chat_template))
    if pack_weights and can_pack(policy.device, policy.dtype):
        policy.packed_lm_head = pack_policy(model)
    return policy


def _load_config(path: str | Path, local: bool) -> Any:
    try:
        return AutoConfig.from_pretrained(path, local_files_only=local)
    except Exception as error:  # each architecture checks its configuration in a way of its own
        if not Path(path).exists():
            message = (
                f"model '{path}' is neither a folder nor in the local cache, and no hub can be reached; "
                "give --model a folder that holds config.json"
            )
        else:
            message = f"model '{path}' has no config.json that transformers can read: {_first_line(error)}"
        raise ModelError(message) from error


def _refuse_by_config(path: str, config: Any) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"model '{path}' is an encoder-decoder; only causal LMs can be served")
    if getattr(config, "quantization_config", None):
        raise ModelError(f"model '{path}' is quantised; serve its unquantised weights")


def _load_model(path: str | Path, dtype: torch.dtype, local: bool) -> PreTrainedModel:
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=local,
            attn_implementation="eager",
            output_loading_info=True,
        )
    except Exception as error:  # whatever a corrupt checkpoint makes the loader raise
        raise ModelError(
            f"model '{path}' cannot be loaded: {_first_line(error)}; copy its files again, with weights as "
            "safetensors"
        ) from error
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise ModelError(f"model '{path}' lacks weights ({missing}, …); save the whole model")
    if not model._supports_attention_backend:
        raise ModelError(
            f"{type(model).__name__} does not route attention through transformers' AttentionInterface; "
            "it cannot be served"
        )
    return model


def _reply_end_id(tokenizer: PreTrainedTokenizerBase, *, is_chat: bool) -> int | None:
    try:
        return end_of_reply(tokenizer, is_chat=is_chat)
    except PolicyError:
        return None


def _pin_rope(path: str, model: PreTrainedModel, asked: int | None) -> int:
    """Resolve max_model_len, and pin rotary frequencies that would depend on a batch's longest position."""
    limit: int = (
        getattr(model.config.get_text_config(), "max_position_embeddings", None) or DEFAULT_MAX_MODEL_LEN
    )
    if asked is not None and not 1 <= asked <= limit:
        raise ModelError(f"--max-model-len {asked} is outside 1…{limit}, what model '{path}' was built for")
    wanted = limit if asked is None else asked
    for module in model.modules():
        rope_type = getattr(module, "rope_type", None)
        if isinstance(rope_type, dict) and {"longrope", "dynamic"} & set(rope_type.values()):
            raise ModelError(
                f"model '{path}' mixes rotary types by layer ({rope_type}), which cannot be pinned"
            )
        if rope_type == "longrope":
            original = int(module.config.rope_parameters["original_max_position_embeddings"])
            if asked is None:
                wanted = min(limit, original)
            elif asked > original:
                _pin_long_factors(module, original)
        if rope_type in ("longrope", "dynamic"):
            # Chosen anew by each batch's longest position, they would make the host wait.
            module.rope_type = "default"
    return wanted


def _pin_long_factors(rope: Any, original: int) -> None:
    """Serve every position with the long factors, as `generate` does past the original length."""
    device = rope.inv_freq.device
    rope(torch.zeros(1, 1, 1, device=device), torch.tensor([[original]], device=device))
    rope.original_inv_freq = rope.inv_freq.clone()


def _discover_layers(model: PreTrainedModel, longest: int) -> tuple[LayerShape, ...]:
    shapes, num_layers = probe_layers(model, longest), model.config.get_text_config().num_hidden_layers
    if sorted(shapes) != list(range(num_layers)):
        raise UnsupportedAttentionError(
            f"it has attention in {len(shapes)} of its {num_layers} layers; state-space and hybrid layers "
            "cannot be served"
        )
    return tuple(shapes[i] for i in range(num_layers))


@torch.inference_mode()
def _body_feeds_lm_head(model: PreTrainedModel) -> bool:
    """Whether the body's last hidden state is what the output embedding reads."""
    probe = torch.arange(4, device=model.device)[None]
    model.set_attn_implementation("eager")
    hidden, _ = forward_with_hidden(model, probe, probe, probe[0])
    body = model.base_model(input_ids=probe, position_ids=probe, use_cache=False)[0][0]
    return torch.equal(body, hidden)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0] or type(error).__name__
