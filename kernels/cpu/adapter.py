"""Adapters of the CPU backend: low-rank products with an activation between, in one call."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from trimtab.kernels.cpu.weights import PackedWeight

__all__ = ["Adapter"]


class Adapter:
    """w · up φ(down h) of rows h, each with a weight w of its own; where w is 0, 0 whatever h is.

    down: [r, d]. up: [V, r] of the same library. silu: φ, or none. A row's result is the same bits whatever
    other rows are computed with it.
    """

    def __init__(self, down: PackedWeight, up: PackedWeight, *, silu: bool) -> None:
        if down.shape[0] != up.shape[1] or down.library is not up.library:
            raise ValueError(f"an adapter's [r, d] and [V, r] must fit: {down.shape} and {up.shape} do not")
        self.down, self.up, self._silu = down, up, silu
        self._run = down.library.cdll.trimtab_adapter
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        matrix = (pointer, size)  # and floats between its rows
        kinds = (pointer, pointer, ctypes.c_int32, *matrix, size, *matrix, *matrix)
        self._run.restype, self._run.argtypes = None, list(kinds)

    def __call__(self, h: Tensor, weights: Tensor) -> Tensor:
        """f32[G, V] of h f32[G, d] and weights f32[G]."""
        d = self.down.shape[1]
        if h.dtype != torch.float32 or h.dim() != 2 or h.shape[1] != d or weights.shape != h.shape[:1]:
            raise ValueError(f"an adapter needs float32 [G, {d}] and [G], not {h.dtype} {tuple(h.shape)}")
        h = h if h.stride(1) == 1 else h.contiguous()
        weights = weights.float()
        out = torch.empty(len(h), self.up.shape[0])
        ends = (ctypes.byref(self.down.struct), ctypes.byref(self.up.struct), self._silu)
        rows = (h.data_ptr(), h.stride(0), len(h), weights.data_ptr(), weights.stride(0))
        self._run(*ends, *rows, out.data_ptr(), out.stride(0))
        return out
