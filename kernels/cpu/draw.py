"""Draw on a CPU: calls the library that measures rows of materialised logits, cuts them and draws from them.

The backend "cpu" of guided_logits.py, base_statistics.py, truncate.py, tilt.py and penalties.py, whose public
functions say what each argument is.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from trimtab.kernels.cpu.library import load_library
from trimtab.kernels.philox import DRAW


class _Batch(ctypes.Structure):
    _fields_ = [
        ("num_rows", c_int64),
        ("vocab_size", c_int64),
        ("logits", c_void_p),
        ("logits_stride", c_int64),
        ("advantage", c_void_p),
        ("advantage_stride", c_int64),
        ("advantage_row", c_void_p),
        ("beta", c_void_p),
    ]


class _Keys(ctypes.Structure):
    _fields_ = [
        ("seeds", c_void_p),
        ("positions", c_void_p),
        ("choices", c_void_p),
        ("purpose", c_int64),
        ("temperature", c_void_p),
        ("min_p", c_void_p),
        ("top_k", c_void_p),
        ("top_p", c_void_p),
    ]


class _Drawn(ctypes.Structure):
    _fields_ = [
        ("token", c_void_p),
        ("logprob", c_void_p),
        ("base_logprob", c_void_p),
        ("kl", c_void_p),
        ("soft_value", c_void_p),
        ("entropy", c_void_p),
        ("lse_base", c_void_p),
        ("lse_guided", c_void_p),
        ("flip", c_void_p),
    ]


class _Call:
    """One call's arguments: keeps the tensors that it points to."""

    def __init__(self) -> None:
        self._kept: list[Tensor] = []

    def at(self, values: Tensor | None, dtype: torch.dtype) -> int | None:
        """Address of a tensor of that type without gaps; a copy where it is neither."""
        if values is None:
            return None
        assert values.device.type == "cpu"
        values = values.to(dtype).contiguous()
        self._kept.append(values)
        return values.data_ptr()

    def rows(self, values: Tensor | None) -> tuple[int | None, int]:
        """Address of f32[N, V] and the distance of its rows."""
        if values is None:
            return None, 0
        assert values.dtype == torch.float32
        assert values.device.type == "cpu"
        if values.stride(1) != 1:
            values = values.contiguous()
        self._kept.append(values)
        return values.data_ptr(), values.stride(0)

    def batch(
        self, logits: Tensor, advantage: Tensor | None, advantage_row: Tensor | None, beta: Tensor | None
    ) -> Any:
        num_rows, vocab_size = logits.shape
        if advantage is not None and not len(advantage):
            advantage = None
        address, stride = self.rows(logits)
        return ctypes.byref(
            _Batch(
                num_rows,
                vocab_size,
                address,
                stride,
                *self.rows(advantage),
                self.at(advantage_row, torch.int64),
                self.at(beta, torch.float32),
            )
        )

    def keys(
        self,
        keys: tuple[Tensor, Tensor, Tensor] | None,
        temperature: Tensor,
        min_p: Tensor | None,
        top_k: Tensor | None,
        top_p: Tensor | None,
    ) -> Any:
        """keys: seeds, positions, choices, where something is drawn."""
        return ctypes.byref(
            _Keys(
                *(self.at(key, torch.int64) for key in keys or (None, None, None)),
                DRAW,
                self.at(temperature, torch.float32),
                self.at(min_p, torch.float32),
                self.at(top_k, torch.int64),
                self.at(top_p, torch.float32),
            )
        )

    def pointer(self, values: Tensor | None, dtype: torch.dtype = torch.float32) -> c_void_p:
        return c_void_p(self.at(values, dtype))


def draw(
    logits: Tensor,
    seeds: Tensor,
    positions: Tensor,
    choices: Tensor,
    temperature: Tensor,
    advantage: Tensor | None,
    advantage_row: Tensor | None,
    beta: Tensor | None,
    want_entropy: bool,
    min_p: Tensor | None = None,
    top_k: Tensor | None = None,
    top_p: Tensor | None = None,
    isa: str | None = None,
) -> tuple[Any, ...]:
    """The fields of `GuidedDraw`. isa: see `load_library`."""
    call, num_rows = _Call(), len(logits)
    keys = call.keys((seeds, positions, choices), temperature, min_p, top_k, top_p)
    token, flip = torch.empty(num_rows, dtype=torch.int64), torch.empty(num_rows, dtype=torch.bool)
    fields = torch.empty(7 if want_entropy else 6, num_rows)
    logprob, base_logprob, kl, soft_value, lse_base, lse_guided, *entropy = fields
    drawn = _Drawn(
        token.data_ptr(),
        logprob.data_ptr(),
        base_logprob.data_ptr(),
        kl.data_ptr(),
        soft_value.data_ptr(),
        entropy[0].data_ptr() if entropy else None,
        lse_base.data_ptr(),
        lse_guided.data_ptr(),
        flip.data_ptr(),
    )
    batch = call.batch(logits, advantage, advantage_row, beta)
    load_library(isa).cdll.trimtab_draw(batch, keys, ctypes.byref(drawn))
    return (
        token,
        logprob,
        base_logprob,
        kl,
        soft_value,
        entropy[0] if entropy else None,
        flip,
        lse_base,
        lse_guided,
    )


def measure_base(
    logits: Tensor,
    advantage: Tensor | None,
    advantage_row: Tensor | None,
    want_entropy: bool,
    isa: str | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """The fields of `BaseStatistics`."""
    call, out = _Call(), torch.empty(4 if want_entropy else 3, len(logits))
    top, total, mean, *entropy = out
    load_library(isa).cdll.trimtab_base_statistics(
        call.batch(logits, advantage, advantage_row, None),
        call.pointer(top),
        call.pointer(total),
        call.pointer(entropy[0] if entropy else None),
        call.pointer(mean),
    )
    return top, total, entropy[0] if entropy else None, mean


def tilted_logits(
    logits: Tensor, advantage: Tensor, advantage_row: Tensor, beta: Tensor, isa: str | None = None
) -> Tensor:
    """See `guided_logits.tilted_logits`."""
    call, out = _Call(), torch.empty(logits.shape)
    batch = call.batch(logits, advantage, advantage_row, beta)
    load_library(isa).cdll.trimtab_tilted_logits(batch, call.pointer(out))
    return out


def truncation_threshold(
    guided_logits: Tensor,
    temperature: Tensor,
    min_p: Tensor | None,
    top_k: Tensor | None,
    top_p: Tensor | None,
    isa: str | None = None,
) -> Tensor:
    """See `truncate.truncation_threshold`."""
    call, out = _Call(), torch.empty(len(guided_logits))
    load_library(isa).cdll.trimtab_truncation_threshold(
        call.batch(guided_logits, None, None, None),
        call.keys(None, temperature, min_p, top_k, top_p),
        call.pointer(out),
    )
    return out


def truncate_and_draw(
    guided: Tensor,
    temperature: Tensor,
    min_p: Tensor | None,
    top_k: Tensor | None,
    top_p: Tensor | None,
    keys: tuple[Tensor, Tensor, Tensor],
) -> Tensor:
    """See `truncate.truncate_and_draw`."""
    return draw(guided, *keys, temperature, None, None, None, False, min_p, top_k, top_p)[0]


def solve_tilt(
    logits: Tensor,
    advantage: Tensor,
    advantage_row: Tensor,
    strength: Tensor,
    kl_cap: Tensor | None,
    lift: Tensor | None,
    isa: str | None = None,
) -> Tensor:
    """See `tilt.solve_tilt`."""
    call, out = _Call(), torch.empty(len(logits))
    load_library(isa).cdll.trimtab_solve_tilt(
        call.batch(logits, advantage, advantage_row, strength),
        call.pointer(kl_cap),
        call.pointer(lift),
        call.pointer(out),
    )
    return out


def apply_token_mask(logits: Tensor, rows: Tensor, bitmask: Tensor, isa: str | None = None) -> None:
    """See `penalties.apply_token_mask`."""
    assert logits.stride(1) == 1
    call = _Call()
    address, stride = call.rows(logits)
    load_library(isa).cdll.trimtab_apply_token_mask(
        c_void_p(address),
        c_int64(stride),
        c_int64(logits.shape[1]),
        call.pointer(rows, torch.int64),
        c_int64(len(rows)),
        call.pointer(bitmask, torch.int32),
    )
