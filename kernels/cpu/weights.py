"""Packed weights of the CPU backend: a matrix as its products read it, in the numbers of its checkpoint."""

from __future__ import annotations

import ctypes
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from trimtab.kernels.cpu.library import Library

__all__ = ["HALF_MAX", "PackedWeight", "WeightFormat", "WeightStruct", "is_exact", "may_round"]

WeightFormat = Literal["float32", "float16", "bfloat16", "q8", "q4"]
_CODES = {"float32": 0, "float16": 1, "bfloat16": 2, "q8": 3, "q4": 4}
_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
HALF_MAX = 65504.0
_DTYPES_OF = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_LARGEST = {"float16": HALF_MAX, "q8": 127 * HALF_MAX, "q4": HALF_MAX / 2}
"""Of numbers that a format takes: scales of groups are float16."""


class WeightStruct(ctypes.Structure):
    """`Weight` of products.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("n", ctypes.c_int64),
        ("k", ctypes.c_int64),
        ("format", ctypes.c_int32),
        ("rounds", ctypes.c_int32),
    )


class PackedWeight:
    """W [N, K] packed for `library`: x·Wᵀ summed in fp32, and rows of W.

    "float32", "float16" and "bfloat16" keep numbers exactly that they can represent; so do, for 32 along K
    together, "q8" (bytes times a float16, as GGUF's Q8_0) and "q4" (four bits times a float16 and one added,
    as its Q4_1 and Q4_0). Others are rounded. A product is that of the stored numbers in "float32", bit for
    bit.

    rounds_inputs: x within the product as well: to bfloat16 for "bfloat16" weights, as CPUs with
    `library.multiplies_bfloat16` multiply it twice as fast; for "q8" and "q4" to bytes with a scale for 32.

    A row of a product is the same bits whatever other rows are computed with it.

    weight: [N, K] of one of those dtypes; not kept.

    Raises:
        ValueError: a shape, dtype or format that cannot be packed, or numbers that the format cannot hold.
    """

    def __init__(
        self, weight: Tensor, format: WeightFormat, library: Library, rounds_inputs: bool = False
    ) -> None:
        if format not in get_args(WeightFormat):
            raise ValueError(f"weight format {format!r} does not exist: use one of {', '.join(_CODES)}")
        _check(weight)
        if rounds_inputs and not may_round(format, library):
            raise ValueError(
                "inputs are rounded for q8, q4, and bfloat16 weights on a CPU that multiplies bfloat16"
            )
        weight = weight.detach()
        if format in _LARGEST and weight.dtype != _DTYPES_OF.get(format):
            low, high = weight.aminmax()
            if not max(-low, high) <= _LARGEST[format]:  # or not a number
                raise ValueError(
                    f'weights beyond {_LARGEST[format]:.0f} do not fit {format}: use "bfloat16" or "float32"'
                )
        self.format, self.library = format, library
        self.shape = cast(tuple[int, int], tuple(weight.shape))
        self.struct = WeightStruct(None, *self.shape, _CODES[format], rounds_inputs)
        _declare(library)
        self.nbytes = int(library.cdll.trimtab_packed_bytes(ctypes.byref(self.struct)))
        self._data = library.memory.take(self.nbytes)
        self.struct.data = self._data.data_ptr()
        weight = _in_rows(weight)
        library.cdll.trimtab_pack(ctypes.byref(self.struct), *_source(weight))

    def product(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """x·Wᵀ, f32 [M, N], of x f32 [M, K]; into `out` where it is given. Both with rows in one piece."""
        n, k = self.shape
        if x.dtype != torch.float32 or x.dim() != 2 or x.shape[1] != k:
            raise ValueError(
                f"a product with {self.shape} needs float32 [M, {k}], not {x.dtype} {tuple(x.shape)}"
            )
        out = x.new_empty(len(x), n) if out is None else out
        if out.dtype != torch.float32 or out.shape != (len(x), n) or out.stride(1) != 1:
            raise ValueError(f"out must be float32 [{len(x)}, {n}] with rows in one piece")
        x = x if x.stride(1) == 1 else x.contiguous()
        arguments = (x.data_ptr(), x.stride(0), len(x), out.data_ptr(), out.stride(0))
        self.library.cdll.trimtab_product(ctypes.byref(self.struct), *arguments)
        return out

    def rows(self, ids: Tensor) -> Tensor:
        """Rows of W, f32 [M, K], at ids i64 [M]."""
        out = torch.empty(len(ids), self.shape[1])
        ids = ids.contiguous()
        struct = ctypes.byref(self.struct)
        self.library.cdll.trimtab_weight_rows(struct, ids.data_ptr(), len(ids), out.data_ptr())
        return out


def is_exact(weight: Tensor, format: WeightFormat, library: Library) -> bool:
    """Whether a matrix's numbers are the same in a format: those of a checkpoint in that format are."""
    _check(weight)
    weight = weight.detach()
    if format in _DTYPES_OF:
        dtype = _DTYPES_OF[format]
        return all(torch.equal(rows.to(dtype).to(rows.dtype), rows) for rows in weight.split(256))
    _declare(library)
    struct = WeightStruct(None, *weight.shape, _CODES[format], 0)
    weight = _in_rows(weight)
    return bool(library.cdll.trimtab_holds(ctypes.byref(struct), *_source(weight)))


def _check(weight: Tensor) -> None:
    if weight.dim() != 2 or not weight.numel() or weight.dtype not in _DTYPES:
        kinds = "a matrix of float32, float16 or bfloat16"
        raise ValueError(f"a packed weight needs {kinds}, not {tuple(weight.shape)} of {weight.dtype}")


def may_round(format: WeightFormat, library: Library) -> bool:
    """Whether products with a format may round their inputs too."""
    return format in ("q8", "q4") or (format == "bfloat16" and library.multiplies_bfloat16)


def _in_rows(weight: Tensor) -> Tensor:
    return weight.cpu() if weight.stride(1) == 1 else weight.cpu().contiguous()


def _source(weight: Tensor) -> tuple[int, int, int]:
    return _DTYPES[weight.dtype], weight.data_ptr(), weight.stride(0)


def _declare(library: Library) -> None:
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    cdll = library.cdll
    cdll.trimtab_packed_bytes.restype = size
    cdll.trimtab_packed_bytes.argtypes = [pointer]
    cdll.trimtab_holds.restype = ctypes.c_int32
    cdll.trimtab_holds.argtypes = [pointer, ctypes.c_int32, pointer, size]
    for name, arguments in {
        "trimtab_pack": [pointer, ctypes.c_int32, pointer, size],
        "trimtab_product": [pointer, pointer, size, size, pointer, size],
        "trimtab_weight_rows": [pointer, pointer, size, pointer],
    }.items():
        function = getattr(cdll, name)
        function.restype, function.argtypes = None, arguments
