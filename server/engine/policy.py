"""Served policy: puts modules of the engine's own over frozen weights, and refuses what it cannot serve
right."""

from __future__ import annotations

import copy
import itertools
import logging
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel, PreTrainedTokenizerBase

from trimtab.guidance.errors import ModelError, PolicyError, first_line
from trimtab.guidance.heads.bank import Vocabulary
from trimtab.guidance.heads.fingerprint import PolicyIdentity
from trimtab.guidance.policy import Policy, load_policy, output_embedding_input
from trimtab.guidance.text.ends import end_of_reply
from trimtab.kernels.cpu.weights import PackedWeight, WeightFormat
from trimtab.kernels.dispatch import Backend
from trimtab.kernels.wide_product import wide_product
from trimtab.server.engine.attention.base import UnsupportedAttentionError
from trimtab.server.engine.attention.probe import probe_layers
from trimtab.server.engine.detokenizer import TextDecoder
from trimtab.server.engine.kv_cache import KVCache, LayerShape
from trimtab.server.engine.native.threads import threads_to_try
from trimtab.server.engine.reasoning import Tags, find_tags

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
    except PolicyError as error:
        raise ModelError(str(error)) from error
    except UnsupportedAttentionError as error:
        raise ModelError(f"{model} cannot be served: {error}") from error
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ModelError(f"{model} cannot be served: it fails when it is tried ({reason})") from error


class Native(Protocol):
    """What runs a policy in the place of its modules; see native.model.

    formats: of its matrices; num_bytes: that these take. cache_dtype: of keys and values. roundings: the
    formats that something has lost bits in.
    """

    @property
    def formats(self) -> Sequence[WeightFormat]: ...

    @property
    def cache_dtype(self) -> torch.dtype: ...

    @property
    def roundings(self) -> Sequence[str]: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def num_bytes(self) -> int: ...

    def run(
        self,
        ids: Tensor,
        positions: Tensor,
        cache_slots: Tensor,
        firsts: Sequence[int],
        block_tables: Tensor,
        cache: KVCache,
        outputs: Tensor,
    ) -> Tensor: ...

    def project(self, columns: Tensor) -> Tensor: ...

    def logits(self, h: Tensor) -> Tensor: ...

    def vocabulary(self) -> Vocabulary: ...


@dataclass(slots=True)
class ServedPolicy:
    """A policy in the engine's hands.

    frozen: the policy as it was loaded, whose modules stay as they are. model: the same weights in modules
    of the engine's own.
    eos_token_ids: the tokens that end any reply.
    tags: what the model thinks between, if it does.
    reply_end_id: the token that ends a reply, appended before a reward part reads it; None without one.
    has_linear_tail: logits are exactly `h Wᵀ` of what the body returns; otherwise they go through the model's
    own tail (softcap, scale, bias), and the model is always run to its end.
    native: what runs it in the place of its modules, if anything; packed: what stands
    for the weights of some of them where they run themselves. backend: what its tokens are drawn by, if
    not what the device says; see `choose_backend`.
    """

    frozen: Policy
    name: str
    model: PreTrainedModel
    layers: tuple[LayerShape, ...]
    max_model_len: int
    eos_token_ids: tuple[int, ...]
    reply_end_id: int | None = None
    has_linear_tail: bool = False
    native: Native | None = None
    packed: Mapping[nn.Module, PackedWeight] = field(default_factory=dict)
    backend: Backend | None = None
    num_parameters: int = field(init=False)
    text: TextDecoder = field(init=False)
    tags: Tags | None = field(init=False)

    def __post_init__(self) -> None:
        self.num_parameters = sum(parameter.numel() for parameter in self.model.parameters())
        self.text = TextDecoder(self.tokenizer)
        self.tags = find_tags(self.tokenizer.added_tokens_decoder)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.frozen.tokenizer

    @property
    def identity(self) -> PolicyIdentity:
        """What heads and features know the policy by, taken from its weights as they were loaded."""
        return self.frozen.identity

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
    def hidden_size(self) -> int:
        return self.identity.hidden_size

    @property
    def vocab_size(self) -> int:
        return len(self.lm_head) if self.native is None else self.native.vocab_size

    @property
    def cache_dtype(self) -> torch.dtype:
        """Of keys and values; see EngineConfig.kv_cache_dtype."""
        return self.dtype if self.native is None else self.native.cache_dtype

    def needs_one_shape(self, strict: bool) -> bool:
        """Whether all steps must have one shape for a row to be the same bits in each, as `strict` promises.
        A row of the C++ backend's is anyway."""
        return strict and self.native is None

    def release_weights(self) -> None:
        """Give back the memory of weights that the C++ backend has copies of: the modules do not run again.
        For a policy that is nobody else's."""
        if self.native is not None:
            for parameter in {*self.model.parameters(), *self.frozen.model.parameters()}:
                parameter.data = parameter.data.new_empty(0)

    def project(self, columns: Tensor) -> Tensor:
        """columns [N, d] times the output embedding, f32[N, V]: for h logits if the tail is linear."""
        if columns.is_cuda:
            return wide_product(columns, self.lm_head)
        if self.native is not None:
            return self.native.project(columns)
        if (lm_head := self.packed.get(self.model.get_output_embeddings())) is not None:
            return lm_head.product(columns)
        return nn.functional.linear(columns, self.lm_head).float()

    def logits(self, h: Tensor, logits: Tensor | None) -> Tensor:
        """f32[N, V] of what `forward` returned."""
        return self.project(h) if logits is None else logits.float()

    def logits_of(self, h: Tensor) -> Tensor:
        """f32[N, V] of h [N, d] alone."""
        if self.native is not None:
            return self.native.logits(h)
        return self.project(h) if self.has_linear_tail else self.frozen.logits(h)

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


def load_served(
    path: str | Path,
    *,
    name: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    max_model_len: int | None = None,
    chat_template: str | None = None,
) -> ServedPolicy:
    """Load a folder or hub id; name, device, dtype and chat_template as load_policy takes them.

    Raises ModelError with one line that names the model and the fix.
    """
    with refusing(f"model '{path}'"):
        policy = load_policy(path, name=name, device=device, dtype=dtype, chat_template=chat_template)
    return serve(policy, max_model_len=max_model_len)


def serve(policy: Policy, *, name: str | None = None, max_model_len: int | None = None) -> ServedPolicy:
    """A loaded policy, served from the same weights.

    name: what to call it; by default its own.
    Raises ModelError with one line that names the model and the fix.
    """
    with threads_to_try(policy.model.num_parameters()):
        return _serve(policy, name or policy.identity.base_model.name, max_model_len)


def _serve(policy: Policy, name: str, max_model_len: int | None) -> ServedPolicy:
    kind = type(policy.model).__name__
    if not policy.model._supports_attention_backend:
        raise ModelError(
            f"{kind} does not route attention through transformers' AttentionInterface; it cannot be served"
        )
    model = _own_modules(policy.model)
    model.set_attn_implementation("eager")
    limit = _pin_rope(name, model, max_model_len)
    with refusing(f"model '{name}' ({kind})"):
        served = ServedPolicy(
            frozen=policy,
            name=name,
            model=model,
            layers=_discover_layers(model, limit),
            max_model_len=limit,
            eos_token_ids=policy.end_ids,
            has_linear_tail=policy.has_linear_tail and _body_feeds_lm_head(model),
        )
    served.reply_end_id = _reply_end_id(policy.tokenizer)
    return served


def _own_modules(model: PreTrainedModel) -> PreTrainedModel:
    """The same parameters in modules and with a configuration of the engine's own: it replaces attention,
    products and norms in them, and whoever else runs the model does not notice."""
    own: PreTrainedModel = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
    return own


def _reply_end_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    try:
        return end_of_reply(tokenizer, is_chat=bool(tokenizer.chat_template))
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
