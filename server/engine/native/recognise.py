"""Recognised decoder: reads from a loaded model what the C++ backend runs it by, or says what it does not
know.

Numbers are taken from the modules themselves, not from their configuration: what a norm makes of a constant
is its weight, what the rotary module says of a position its angles. Whether all of it is right is the
self-check's to tell, which holds the outcome against the model's own forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trimtab.kernels.cpu.decoder import Activation, DecoderSpec, LayerSpec
from trimtab.kernels.cpu.weights import PackedWeight
from trimtab.server.engine.kv_cache import LayerShape
from trimtab.server.engine.policy import ServedPolicy

ATTENTION = ({"q_proj", "k_proj", "v_proj", "o_proj"}, {"qkv_proj", "o_proj"})
HEAD_NORMS = {"q_norm", "k_norm"}
MLP = ({"gate_proj", "up_proj", "down_proj"}, {"gate_up_proj", "down_proj"})
LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
FEEDFORWARD_NORMS = {"pre_feedforward_layernorm", "post_feedforward_layernorm"}
ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu": F.gelu,
}
POSITIONS_AT_ONCE = 1024
LOUD = 1000.0  # beside which no epsilon counts
Pack = Callable[[Tensor], PackedWeight]


class UnrecognisedError(Exception):
    """The model has a part that the C++ backend does not know; the message names it."""


@dataclass(slots=True)
class _Seen:
    """What the layers were called with. scales, softcaps: by layer. angles: of each layer, the cosines and
    sines [T, rotary_dim] of the positions that were run."""

    scales: dict[int, float] = field(default_factory=dict)
    softcaps: dict[int, float | None] = field(default_factory=dict)
    angles: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    first_input: Tensor | None = None


@torch.inference_mode()
def read_decoder(policy: ServedPolicy, block_size: int, pack: Pack) -> tuple[DecoderSpec, PackedWeight]:
    """The policy's body, and its packed output embedding. Takes over the policy's attention.

    Raises UnrecognisedError.
    """
    model: Any = policy.model
    body = model.base_model
    layers = getattr(body, "layers", None)
    if not isinstance(layers, nn.ModuleList) or len(layers) != len(policy.layers):
        raise UnrecognisedError(f"{type(body).__name__} keeps its layers otherwise")
    _check_body(body)
    for layer, shape in zip(layers, policy.layers, strict=True):
        _check_layer(layer, shape)
    seen = _watch_attention(policy)
    tables, embedding_scale = _rotary_tables(policy, layers)
    lm_head = pack(model.get_output_embeddings().weight)
    embedding = _embedding(policy, lm_head, pack)
    read = [
        _read_layer(layer, policy.layers[i], seen.scales[i], seen.softcaps[i], tables[i], pack)
        for i, layer in enumerate(layers)
    ]
    first: Any = layers[0]
    norm, eps = _read_norm(body.norm, "the last norm")
    num_kv_heads, head_dim = policy.layers[0].num_kv_heads, policy.layers[0].key_dim
    if {(shape.num_kv_heads, shape.key_dim) for shape in policy.layers} != {(num_kv_heads, head_dim)}:
        raise UnrecognisedError("its layers have heads of several sizes")
    spec = DecoderSpec(
        layers=tuple(read),
        embedding=embedding,
        embedding_scale=embedding_scale,
        residual_scale=_residual_scale(layers),
        final_norm=norm,
        eps=_one({eps, *(_epsilon(norm) for layer in layers for norm in _norms(layer))}, "epsilons"),
        activation=_one({_activation(layer.mlp) for layer in layers}, "activations"),
        num_heads=first.self_attn.o_proj.in_features // head_dim,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        hidden=len(norm),
        intermediate=first.mlp.down_proj.in_features,
        block_size=block_size,
    )
    return spec, lm_head


def _one(found: set[Any], what: str) -> Any:
    if len(found) != 1:
        raise UnrecognisedError(f"its layers have {len(found)} different {what}")
    return found.pop()


def _check_body(body: Any) -> None:
    known = {"embed_tokens", "layers", "norm", "rotary_emb"}
    extra = {name for name, module in body.named_children() if any(True for _ in module.parameters())} - known
    if extra or not isinstance(getattr(body, "norm", None), nn.Module):
        what = ", ".join(sorted(extra)) or "no last norm"
        raise UnrecognisedError(f"{type(body).__name__} has {what}")


def _check_layer(layer: Any, shape: LayerShape) -> None:
    """Whether all that it holds is what we know."""
    children = _weighty(layer)
    if children not in (LAYER, LAYER | FEEDFORWARD_NORMS):
        raise UnrecognisedError(f"{type(layer).__name__} is made of {', '.join(sorted(children))}")
    attention, mlp = _weighty(layer.self_attn), _weighty(layer.mlp)
    if attention - HEAD_NORMS not in ATTENTION or attention & HEAD_NORMS not in (set(), HEAD_NORMS):
        raise UnrecognisedError(f"{type(layer.self_attn).__name__} is made of {', '.join(sorted(attention))}")
    if mlp not in MLP:
        raise UnrecognisedError(f"{type(layer.mlp).__name__} is made of {', '.join(sorted(mlp))}")
    if shape.key_dim != shape.value_dim:
        raise UnrecognisedError("its keys and values differ in size")
    for module in (*layer.self_attn.children(), *layer.mlp.children()):
        has_weights = any(True for _ in module.parameters())
        if has_weights and "norm" not in type(module).__name__.lower() and type(module) is not nn.Linear:
            raise UnrecognisedError(f"it multiplies by a {type(module).__name__}")


def _weighty(module: nn.Module) -> set[str]:
    """Names of the children that have parameters."""
    return {name for name, child in module.named_children() if any(True for _ in child.parameters())}


def _watch_attention(policy: ServedPolicy) -> _Seen:
    """What each layer asks its attention for, in a run over two tokens."""
    seen = _Seen()

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **asked: Any) -> Any:
        scale = asked.get("scaling")
        seen.scales[module.layer_idx] = query.shape[-1] ** -0.5 if scale is None else float(scale)
        seen.softcaps[module.layer_idx] = asked.get("softcap")
        return value.new_zeros(1, query.shape[2], query.shape[1], value.shape[3]), None

    policy.use_attention(attend)
    ids = torch.zeros(1, 2, dtype=torch.long)
    policy.model.base_model(input_ids=ids, position_ids=torch.arange(2)[None], use_cache=False)
    return seen


@contextmanager
def _layers_that_only_look(layers: nn.ModuleList, seen: _Seen) -> Iterator[None]:
    """Within, layers give back what they get, and note what it was."""

    def note(hidden: Tensor, *args: Any, **given: Any) -> Tensor:
        if seen.first_input is None:
            seen.first_input = hidden[0]
        cos, sin = given["position_embeddings"]
        seen.angles.append((cos[0], sin[0]))
        return hidden

    try:
        for layer in layers:
            layer.forward = note
        yield
    finally:
        for layer in layers:
            del layer.forward


def _rotary_tables(policy: ServedPolicy, layers: nn.ModuleList) -> tuple[list[tuple[Tensor, Tensor]], float]:
    """Of each layer, cosines and sines f32[max_model_len, rotary_dim / 2], shared where they are the same;
    and what embeddings are multiplied by."""
    parts: list[list[tuple[Tensor, Tensor]]] = [[] for _ in layers]
    scale = 1.0
    for start in range(0, policy.max_model_len, POSITIONS_AT_ONCE):
        seen = _Seen()
        positions = torch.arange(start, min(start + POSITIONS_AT_ONCE, policy.max_model_len))
        ids = positions % policy.vocab_size
        with _layers_that_only_look(layers, seen):
            try:
                policy.model.base_model(input_ids=ids[None], position_ids=positions[None], use_cache=False)
            except KeyError as error:
                raise UnrecognisedError(f"its layers are not told {error}") from error
        for part, angles in zip(parts, seen.angles, strict=True):
            part.append(angles)
        if start == 0:
            assert seen.first_input is not None
            scale = _embedding_scale(policy, ids, seen.first_input)
    tables: list[tuple[Tensor, Tensor]] = []
    for part in parts:
        halves = [_halves(torch.cat(each)) for each in zip(*part, strict=True)]
        mine = halves[0], halves[1]
        same = (table for table in tables if all(map(torch.equal, table, mine)))
        tables.append(next(same, mine))
    return tables, scale


def _halves(angles: Tensor) -> Tensor:
    """Both halves of a rotated head have the same angles."""
    first, second = angles.float().chunk(2, 1)
    if not torch.equal(first, second):
        raise UnrecognisedError("it rotates its heads otherwise than by halves")
    return first.contiguous()


def _embedding_scale(policy: ServedPolicy, ids: Tensor, found: Tensor) -> float:
    rows = policy.model.get_input_embeddings().weight[ids].float()
    place = rows.abs().argmax()
    scale = float(found.flatten()[place] / rows.flatten()[place])
    if not torch.allclose(rows * scale, found.float(), rtol=1e-5, atol=1e-7):
        raise UnrecognisedError("its first layer reads more than scaled embeddings")
    return scale


def _embedding(policy: ServedPolicy, lm_head: PackedWeight, pack: Pack) -> PackedWeight:
    """The packed output embedding serves both ends of a model that ties them."""
    model = policy.model
    ours, theirs = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return lm_head if ours.data_ptr() == theirs.data_ptr() else pack(ours)


def _read_layer(
    layer: Any,
    shape: LayerShape,
    scale: float,
    softcap: float | None,
    angles: tuple[Tensor, Tensor],
    pack: Pack,
) -> LayerSpec:
    attention, mlp = layer.self_attn, layer.mlp
    inputs = (
        [attention.qkv_proj]
        if hasattr(attention, "qkv_proj")
        else [attention.q_proj, attention.k_proj, attention.v_proj]
    )
    gate_up = [mlp.gate_up_proj] if hasattr(mlp, "gate_up_proj") else [mlp.gate_proj, mlp.up_proj]
    has_four = hasattr(layer, "pre_feedforward_layernorm")
    before, after = layer.input_layernorm, layer.post_attention_layernorm
    cos, sin = angles
    if not getattr(attention, "use_rope", True):  # SmolLM3 has layers without positions
        cos, sin = torch.ones_like(cos), torch.zeros_like(sin)
    return LayerSpec(
        qkv=_merge(inputs, pack),
        qkv_bias=_bias(inputs),
        o=_merge([attention.o_proj], pack),
        o_bias=_bias([attention.o_proj]),
        gate_up=_merge(gate_up, pack),
        gate_up_bias=_bias(gate_up),
        down=_merge([mlp.down_proj], pack),
        down_bias=_bias([mlp.down_proj]),
        input_norm=_read_norm(before, "a norm")[0],
        post_attention_norm=_read_norm(after, "a norm")[0] if has_four else None,
        pre_mlp_norm=_read_norm(layer.pre_feedforward_layernorm if has_four else after, "a norm")[0],
        post_mlp_norm=_read_norm(layer.post_feedforward_layernorm, "a norm")[0] if has_four else None,
        q_norm=_head_norm(attention, "q_norm", shape.key_dim),
        k_norm=_head_norm(attention, "k_norm", shape.key_dim),
        cos=cos,
        sin=sin,
        rotary_dim=2 * cos.shape[1],
        scale=scale,
        softcap=softcap,
        window=shape.window,
    )


def _merge(linears: Sequence[nn.Linear], pack: Pack) -> PackedWeight:
    weights = [linear.weight for linear in linears]
    return pack(weights[0] if len(weights) == 1 else torch.cat(weights))


def _bias(linears: Sequence[nn.Linear]) -> Tensor | None:
    if all(linear.bias is None for linear in linears):
        return None
    return torch.cat(
        [x.weight.new_zeros(x.out_features) if x.bias is None else x.bias for x in linears]
    ).float()


def _head_norm(attention: Any, name: str, head_dim: int) -> Tensor | None:
    norm = getattr(attention, name, None)
    if norm is None:
        return None
    weight = _read_norm(norm, name)[0]
    if len(weight) != head_dim:
        raise UnrecognisedError(f"{name} is not of a head")
    return weight


def _norms(layer: Any) -> list[nn.Module]:
    modules = [*layer.named_children(), *layer.self_attn.named_children()]
    return [module for name, module in modules if "norm" in name]


def _epsilon(norm: Any) -> float:
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if not isinstance(eps, float):
        raise UnrecognisedError(f"{type(norm).__name__} has no epsilon")
    return eps


def _read_norm(norm: Any, what: str) -> tuple[Tensor, float]:
    """The weight f32[d] that an RMS norm multiplies by, and its epsilon."""
    eps, size = _epsilon(norm), norm.weight.numel()
    loud = torch.full((1, size), LOUD)
    weight = (norm(loud)[0] * (1 + eps / LOUD**2) ** 0.5).float()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, size, generator=generator) * torch.tensor([[0.01], [1.0], [30.0]])
    expected = x * torch.rsqrt(x.square().mean(1, keepdim=True) + eps) * weight
    if not torch.allclose(norm(x).float(), expected, rtol=1e-5, atol=1e-6):
        raise UnrecognisedError(f"{what}, {type(norm).__name__}, is no RMS norm")
    return weight, eps


def _activation(mlp: Any) -> Activation:
    function = getattr(mlp, "act_fn", getattr(mlp, "activation_fn", None))
    x = torch.linspace(-6, 6, 101)
    for name, ours in ACTIVATIONS.items():
        if function is not None and torch.allclose(function(x), ours(x), rtol=1e-6, atol=1e-7):
            return name
    raise UnrecognisedError(f"it activates by {function}")


def _residual_scale(layers: nn.ModuleList) -> float:
    scales = {float(getattr(layer, "residual_multiplier", 1.0)) for layer in layers}
    found: float = _one(scales, "residual multipliers")
    return found
