"""Decoder layers in few kernels: on a GPU, launches are a third of a one-row step that is not its weights.

A layer whose class is known, and whose own forward a probe shows to be the same, reads q, k and v in one
product and gate and up in another, rotates and stores keys in one launch, and adds its first residual within
the next norm.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from trimtab.kernels.rms_norm import rms_norm
from trimtab.kernels.silu_mul import silu_mul
from trimtab.kernels.store_kv import rope_store
from trimtab.server.engine.fused_norms import TOLERANCE

KNOWN = frozenset({"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer"})
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}
LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
NUM_PROBES = 5
PROBE_SCALE = 0.01  # small beside what a layer adds to its input, which is what the probe must see
PROBE = "trimtab_fused_layer_probe"

# (attention module, q, k and v of each token [T, (H + 2 Hkv) · D], cos [T, D], sin [T, D]) → [T, H, Dv]
Attend = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]


class FusedLayer:
    """Forward of one decoder layer. Its modules' weights become parts of the merged ones."""

    def __init__(self, layer: nn.Module) -> None:
        attention: Any = layer.self_attn
        mlp: Any = layer.mlp
        self._attention = attention
        self._qkv = merge(attention.q_proj, attention.k_proj, attention.v_proj)
        self._gate_up = merge(mlp.gate_proj, mlp.up_proj)
        self._o, self._down = attention.o_proj, mlp.down_proj
        self._norms = [norm_of(norm) for norm in (layer.input_layernorm, layer.post_attention_layernorm)]

    def run(
        self, attend: Attend, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor]
    ) -> Tensor:
        """hidden_states [1, T, d] → [1, T, d]. attend: rotates, stores, and attends."""
        x, (cos, sin) = hidden_states[0], position_embeddings
        (first, first_eps), (second, second_eps) = self._norms
        _, normed = rms_norm(x, first, first_eps)
        attended = attend(self._attention, F.linear(normed, *self._qkv), cos[0], sin[0])
        attended = F.linear(attended.flatten(1), self._o.weight, self._o.bias)
        x, normed = rms_norm(attended, second, second_eps, residual=x)
        inner = silu_mul(F.linear(normed, *self._gate_up))
        return (x + F.linear(inner, self._down.weight, self._down.bias))[None]


def merge(*linears: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Weights and biases of modules that read the same input as one; the modules keep views of them."""
    weights: list[Tensor] = [linear.weight.data for linear in linears]
    weight = torch.cat(weights)
    sizes = [len(linear.weight) for linear in linears]
    for linear, part in zip(linears, weight.split(sizes), strict=True):
        linear.weight.data = part  # in place: whoever else holds the parameter does not keep a second copy
    biases: list[Tensor] = [linear.bias.data for linear in linears if linear.bias is not None]
    return weight, torch.cat(biases) if biases else None


def fuse_layers(model: PreTrainedModel, attend: Attend) -> int:
    """Run the model's decoder layers so from now on, while its attention is what it is now; returns how many.

    Layers of a class that is not known, or whose forward a probe shows to be another, stay as they are.
    attend: a method, referred to weakly, as the model may outlive it.
    """
    rope = getattr(model.base_model, "rotary_emb", None)
    layers = [layer for layer in getattr(model.base_model, "layers", ()) if _is_known(layer)]
    if rope is None or not layers:
        return 0
    implementation, num_fused = model.config._attn_implementation, 0
    probe, reference = _Probe(model, rope), weakref.WeakMethod(attend)
    for layer in layers:
        fused = FusedLayer(layer)
        if probe.agrees(layer, fused):
            layer.forward = functools.partial(_forward, layer, fused, reference, model.config, implementation)
            num_fused += 1
    model.set_attn_implementation(implementation)
    return num_fused


def _forward(
    layer: nn.Module,
    fused: FusedLayer,
    reference: weakref.WeakMethod[Attend],
    config: Any,
    implementation: str,
    hidden_states: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """The fused forward under the attention it was made for, the layer's own under any other.

    What else the model passes is for masks and caches, of which paged attention has its own.
    """
    if config._attn_implementation != implementation:
        result: Tensor = type(layer).forward(layer, hidden_states, *args, **kwargs)
        return result
    attend = reference()
    assert attend is not None, "the runner that this attention belongs to is gone"
    return fused.run(attend, hidden_states, kwargs["position_embeddings"])


def _is_known(layer: nn.Module) -> bool:
    if type(layer).__name__ not in KNOWN or set(dict(layer.named_children())) != LAYER:
        return False
    attention: Any = layer.self_attn
    mlp: Any = layer.mlp
    if set(dict(attention.named_children())) != ATTENTION or set(dict(mlp.named_children())) != MLP:
        return False
    linears = [
        module for name, module in [*attention.named_children(), *mlp.named_children()] if "proj" in name
    ]
    biases = [linear.bias is None for linear in (attention.q_proj, attention.k_proj, attention.v_proj)]
    return (
        all(type(linear) is nn.Linear for linear in linears)
        and len(set(biases)) == 1
        and mlp.gate_proj.bias is None is mlp.up_proj.bias
        and all(
            isinstance(norm_of(norm)[1], float)
            for norm in (layer.input_layernorm, layer.post_attention_layernorm)
        )
    )


def norm_of(module: Any) -> tuple[Tensor, float]:
    """Weight and epsilon of an RMS norm."""
    return module.weight, getattr(module, "variance_epsilon", getattr(module, "eps", None))  # type: ignore[return-value]


class _Probe:
    """Runs layers on random rows, with a plain causal attention in the place of the paged one."""

    def __init__(self, model: PreTrainedModel, rope: nn.Module) -> None:
        weight = model.get_input_embeddings().weight
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1, NUM_PROBES, weight.shape[1], generator=generator)
        self._x = (PROBE_SCALE * x).to(weight)
        positions = torch.arange(NUM_PROBES, device=weight.device)[None] * 7
        self._tables = rope(self._x, positions)
        AttentionInterface.register(PROBE, _attend_plainly)
        model.set_attn_implementation(PROBE)

    @torch.inference_mode()
    def agrees(self, layer: nn.Module, fused: FusedLayer) -> bool:
        attention: Any = layer.self_attn
        if self._tables[0].shape[-1] != attention.head_dim:
            return False  # only part of a head is rotated
        expected = type(layer).forward(layer, self._x, position_embeddings=self._tables, attention_mask=None)
        found = fused.run(_rotate_and_attend, self._x, self._tables)
        tolerance = TOLERANCE[found.dtype]
        return torch.allclose(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def _rotate_and_attend(attention: Any, qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    num_tokens, dim = len(qkv), attention.head_dim
    num_kv_heads = attention.k_proj.weight.shape[0] // dim
    cache = qkv.new_zeros(2, 1, num_tokens, num_kv_heads, dim)
    slots = torch.arange(num_tokens, device=qkv.device)
    queries = rope_store(qkv, cos, sin, slots, cache[0], cache[1])
    query, key, value = (x.transpose(0, 1)[None] for x in (queries, cache[0, 0], cache[1, 0]))
    return _attend_plainly(attention, query, key, value, None, scaling=attention.scaling)[0][0]


def _attend_plainly(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    out = F.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=kwargs.get("scaling"), enable_gqa=True
    )
    return out.transpose(1, 2), None
