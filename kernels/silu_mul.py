"""SiLU of a gate times what it gates, from one row that holds both."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trimtab.kernels.dispatch import choose_backend, jit, tl, triton

BLOCK = 1024


def _reference(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up


@jit
def _products(gate_up, out, size: tl.constexpr, block: tl.constexpr):
    row, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * block + tl.arange(0, block)
    inside = at < size
    gate = tl.load(gate_up + row * 2 * size + at, mask=inside, other=0.0)
    up = tl.load(gate_up + row * 2 * size + size + at, mask=inside, other=0.0).to(tl.float32)
    wide = gate.to(tl.float32)
    gated = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype).to(tl.float32)
    tl.store(out + row * size + at, (gated * up).to(gate.dtype), mask=inside)


def _launch(gate_up: Tensor) -> Tensor:
    assert gate_up.is_contiguous()
    num_rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(num_rows, size, dtype=gate_up.dtype, device=gate_up.device)
    _products[num_rows, triton.cdiv(size, BLOCK)](gate_up, out, size=size, block=BLOCK)
    return out


def silu_mul(gate_up: Tensor, backend: str | None = None) -> Tensor:
    """`silu(g) · u` [T, n] of rows (g, u) [T, 2n], the gate rounded before the product.

    backend: see `choose_backend`.
    """
    return _BACKENDS[choose_backend(gate_up.device, backend)](gate_up)


_BACKENDS = {"reference": _reference, "triton": _launch}
