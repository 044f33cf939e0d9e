"""Faster modules in a model's place: products of oneDNN-packed weights on a CPU, fused RMS norms on a GPU."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from trimtab.kernels.rms_norm import rms_norm

NUM_PROBES = 8
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}  # two roundings of the dtype


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this build of torch has oneDNN's packed product for the device and dtype."""
    has_ops = hasattr(torch.ops.mkldnn, "_linear_pointwise") and hasattr(
        torch.ops.mkldnn, "_reorder_linear_weight"
    )
    return (
        device.type == "cpu" and dtype == torch.float32 and torch.backends.mkldnn.is_available() and has_ops
    )


def pack_policy(model: PreTrainedModel) -> Tensor:
    """`pack_linears` of a language model, whose packed output embedding is returned: by far the largest."""
    packed, lm_head = pack_linears(model), model.get_output_embeddings()
    return packed[lm_head] if lm_head in packed else pack(lm_head.weight)


def pack_linears(model: nn.Module) -> dict[nn.Module, Tensor]:
    """Compute every `nn.Linear` of the model from a packed copy of its weight from now on. Returns them.

    Products of few rows run up to twice as fast; the copies cost the weights' memory once more.
    """
    packed: dict[nn.Module, Tensor] = {}
    for module in model.modules():
        if type(module) is nn.Linear:
            packed[module] = pack(module.weight)
            module.forward = functools.partial(packed_linear, packed[module], module.bias)  # type: ignore[method-assign]
    return packed


def pack(weight: Tensor) -> Tensor:
    """weight [out, in] in oneDNN's blocked layout, for `packed_linear` alone."""
    with torch.no_grad():
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
    return packed


def packed_linear(packed: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """x [..., in] → [..., out]: `F.linear` on a packed weight. Outside autograd only."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return out


@torch.no_grad()
def fuse_norms(model: nn.Module) -> int:
    """Compute the model's RMS norms by one kernel instead of six, where a probe shows the same formula: at
    one row, launches are most of a step that is not its weights.

    Returns how many. Norms of another formula, such as Gemma's with 1 + weight, stay as they are.
    """
    num_fused = 0
    for module in model.modules():
        eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        weight = getattr(module, "weight", None)
        if (
            type(module).__name__.endswith("RMSNorm")
            and isinstance(weight, Tensor)
            and isinstance(eps, float)
        ):
            fused = functools.partial(_rms_norm, weight, eps)
            if _agree(module, fused, weight):
                module.forward = fused
                num_fused += 1
    return num_fused


def _rms_norm(weight: Tensor, eps: float, hidden_states: Tensor) -> Tensor:
    rows = hidden_states.reshape(-1, len(weight))
    return rms_norm(rows, weight, eps)[1].view(hidden_states.shape)


def _agree(module: nn.Module, fused: functools.partial[Tensor], weight: Tensor) -> bool:
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(-2, 2, NUM_PROBES)[:, None]
    probe = (scale * torch.randn(NUM_PROBES, len(weight), generator=generator)).to(weight)
    return torch.allclose(fused(probe), module(probe), rtol=TOLERANCE[weight.dtype], atol=1e-6)
