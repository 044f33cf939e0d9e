"""Launches of every kernel that serving and this suite can ask for, as calls on empty tensors.

They are compiled, never run: to fill Triton's cache before a GPU is at hand, and to see without one that all
of them compile.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.inputs import AttentionShape, dtype_name
from trimtab.kernels.base_statistics import base_statistics
from trimtab.kernels.guided_head import ROW_TILES, guided_head
from trimtab.kernels.guided_logits import guided_logits
from trimtab.kernels.paged_attention import paged_attention
from trimtab.kernels.rms_norm import rms_norm
from trimtab.kernels.silu_mul import silu_mul
from trimtab.kernels.store_kv import rope_store, store_kv
from trimtab.kernels.tilt import solve_tilt
from trimtab.kernels.truncate import truncate_and_draw, truncation_threshold
from trimtab.kernels.value_adapter import value_adapter

BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True)
class Launch:
    """run: the call, which makes its tensors itself."""

    name: str
    run: Callable[[], object]


@dataclass(frozen=True, slots=True)
class LaunchShape:
    """A policy's sizes, and those of its heads. num_heads: loaded ones of each form."""

    hidden: int
    vocab: int
    attention: AttentionShape
    rank: int = 64
    num_heads: int = 1
    dtype: torch.dtype = torch.bfloat16
    intermediate: int = 14336
    norm_eps: float = 1e-6

    @property
    def name(self) -> str:
        return f"d={self.hidden} V={self.vocab} {dtype_name(self.dtype)}"


def serving_launches(shape: LaunchShape) -> Iterator[Launch]:
    """All that a server of this policy can launch: plain and guided by every form of head, greedy and
    sampled rows, truncated, measured, and attention."""
    yield from head_launches(shape)
    yield from logits_launches(shape)
    yield from adapter_launches(shape)
    yield from attention_launches(shape.attention, shape.dtype)
    yield from layer_launches(shape)


def head_launches(shape: LaunchShape) -> Iterator[Launch]:
    flags = ((True, False), (False, False), (True, True))  # any row sampled; entropy, which checks ask for
    for tied, low_rank in itertools.product((False, True), repeat=2):
        for rows, (samples, entropy) in itertools.product(_head_rows(shape.dtype), flags):
            form = " and ".join(name for name, has in (("tied", tied), ("low-rank", low_rank)) if has)
            kind = f"{'sampled' if samples else 'greedy'}{', entropy' if entropy else ''}"
            run = partial(_head, shape, rows, tied, low_rank, samples, entropy)
            yield Launch(f"guided_head {form or 'plain'}, {rows} rows, {kind}, {shape.name}", run)


def _head_rows(dtype: torch.dtype) -> tuple[int, ...]:
    return ROW_TILES[:1] if dtype == torch.float32 else ROW_TILES


def _head(shape: LaunchShape, rows: int, tied: bool, low_rank: bool, samples: bool, entropy: bool) -> object:
    h, weight = torch.empty(rows, shape.hidden, dtype=shape.dtype), _weight(shape, shape.hidden)
    rank = shape.rank * shape.num_heads
    factors = (h.new_empty(rows, rank), _weight(shape, rank)) if low_rank else None
    return guided_head(
        h, weight, **_keys(rows), column=torch.empty_like(h) if tied else None, lowrank=factors,
        beta=torch.empty(rows) if tied or low_rank else None, want_entropy=entropy, any_sampled=samples,
        backend="triton",
    )  # fmt: skip


def logits_launches(shape: LaunchShape) -> Iterator[Launch]:
    rows = 16
    for tilts, cuts, samples, entropy in itertools.product((False, True), repeat=4):
        words = [name for name, has in (("tilted", tilts), ("truncated", cuts)) if has]
        kind = f"{'sampled' if samples else 'greedy'}{', entropy' if entropy else ''}"
        run = partial(_logits, shape, rows, tilts, cuts, samples, entropy)
        yield Launch(f"guided_logits {', '.join([*words, kind])}, {shape.name}", run)
    for names in _subsets(("min_p", "top_k", "top_p")):
        yield Launch(f"truncate_and_draw {names}, {shape.name}", partial(_cut, shape, rows, names, True))
        yield Launch(f"truncation_threshold {names}, {shape.name}", partial(_cut, shape, rows, names, False))
    for names in _subsets(("kl_cap", "lift")):
        yield Launch(f"solve_tilt {names}, {shape.name}", partial(_solve, shape, rows, names))
    for tilts, entropy in itertools.product((False, True), repeat=2):
        run = partial(_statistics, shape, rows, tilts, entropy)
        yield Launch(f"base_statistics tilts {tilts}, entropy {entropy}, {shape.name}", run)


def _logits(shape: LaunchShape, rows: int, tilts: bool, cuts: bool, samples: bool, entropy: bool) -> object:
    tilt = _tilt(shape, rows) | {"beta": torch.empty(rows)} if tilts else {}
    return guided_logits(
        torch.empty(rows, shape.vocab), **_keys(rows), **tilt, **(_cuts(rows, CUTS) if cuts else {}),
        want_entropy=entropy, any_sampled=samples, backend="triton",
    )  # fmt: skip


CUTS = ("min_p", "top_k", "top_p")


def _cut(shape: LaunchShape, rows: int, names: tuple[str, ...], draws: bool) -> object:
    logits, cuts = torch.empty(rows, shape.vocab), _cuts(rows, names)
    if draws:
        return truncate_and_draw(logits, **_keys(rows), **cuts, backend="triton")
    return truncation_threshold(logits, torch.empty(rows), **cuts, backend="triton")


def _solve(shape: LaunchShape, rows: int, names: tuple[str, ...]) -> object:
    limits = {name: torch.empty(rows) for name in names}
    tilt = _tilt(shape, rows)
    return solve_tilt(
        torch.empty(rows, shape.vocab), **tilt, strength=torch.empty(rows), **limits, backend="triton"
    )


def _statistics(shape: LaunchShape, rows: int, tilts: bool, entropy: bool) -> object:
    tilt = _tilt(shape, rows) if tilts else {}
    return base_statistics(torch.empty(rows, shape.vocab), **tilt, want_entropy=entropy, backend="triton")


def adapter_launches(shape: LaunchShape) -> Iterator[Launch]:
    for tied, values, activation in itertools.product((False, True), (False, True), ("silu", "identity")):
        run = partial(_adapter, shape, tied, values, activation)
        form = f"{'tied' if tied else 'low-rank'}, {activation}{', values' if values else ''}"
        yield Launch(f"value_adapter {form}, {shape.num_heads} heads, {shape.name}", run)


def _adapter(shape: LaunchShape, tied: bool, values: bool, activation: str) -> object:
    rows, heads, rank, hidden, dtype = 16, shape.num_heads, shape.rank, shape.hidden, shape.dtype
    return value_adapter(
        torch.empty(rows, hidden, dtype=dtype), torch.empty(rows, heads),
        torch.empty(heads, rank, hidden, dtype=dtype),
        torch.empty(heads, hidden, rank, dtype=dtype) if tied else None, (activation,) * heads,
        torch.empty(heads, hidden) if values else None, torch.empty(heads) if values else None,
        backend="triton",
    )  # fmt: skip


def attention_launches(shape: AttentionShape, dtype: torch.dtype) -> Iterator[Launch]:
    words = f"heads={shape.heads}/{shape.kv_heads} dim={shape.dim} {dtype_name(dtype)}"
    words += f" window={shape.window} softcap={shape.softcap}"
    for kind, longest, splits in (("decode", 1, True), ("prefill", 20, True), ("strict", 20, False)):
        yield Launch(f"paged_attention {kind}, {words}", partial(_attend, shape, dtype, longest, splits))
    yield Launch(f"store_kv {words}", partial(_store, shape, dtype))


def layer_launches(shape: LaunchShape) -> Iterator[Launch]:
    """Of the ops that fused decoder layers are made of."""
    for adds in (False, True):
        run = partial(_norm, shape, adds)
        yield Launch(f"rms_norm{' of a sum' if adds else ''}, {shape.name}", run)
    yield Launch(f"silu_mul n={shape.intermediate}, {shape.name}", partial(_gate, shape))
    yield Launch(f"rope_store, {shape.name}", partial(_rotate, shape))


def _norm(shape: LaunchShape, adds: bool) -> object:
    x, weight = (torch.empty(*size, shape.hidden, dtype=shape.dtype) for size in ((16,), ()))
    return rms_norm(x, weight, shape.norm_eps, torch.empty_like(x) if adds else None, backend="triton")


def _gate(shape: LaunchShape) -> object:
    return silu_mul(torch.empty(16, 2 * shape.intermediate, dtype=shape.dtype), backend="triton")


def _rotate(shape: LaunchShape) -> object:
    rows, attention, dtype = 16, shape.attention, shape.dtype
    cache = torch.empty(4, BLOCK_SIZE, attention.kv_heads, attention.dim, dtype=dtype)
    num_heads = attention.heads + 2 * attention.kv_heads
    table, slots = torch.empty(rows, attention.dim, dtype=dtype), torch.empty(rows, dtype=torch.long)
    qkv = torch.empty(rows, num_heads * attention.dim, dtype=dtype)
    return rope_store(qkv, table, table, slots, cache, torch.empty_like(cache), backend="triton")


def _attend(shape: AttentionShape, dtype: torch.dtype, longest: int, splits: bool) -> object:
    rows, cache = 2, torch.empty(4, BLOCK_SIZE, shape.kv_heads, shape.dim, dtype=dtype)
    query = torch.empty(rows * longest, shape.heads, shape.dim, dtype=dtype)
    return paged_attention(
        query, cache, torch.empty_like(cache), block_tables=torch.empty(rows, 64, dtype=torch.long),
        query_starts=torch.empty(rows + 1, dtype=torch.int32),
        context_lens=torch.empty(rows, dtype=torch.int32), max_query_len=longest, scale=shape.dim**-0.5,
        window=shape.window, softcap=shape.softcap, splits_keys=splits, backend="triton",
    )  # fmt: skip


def _store(shape: AttentionShape, dtype: torch.dtype) -> None:
    cache = torch.empty(4, BLOCK_SIZE, shape.kv_heads, shape.dim, dtype=dtype)
    keys = torch.empty(16, shape.kv_heads, shape.dim, dtype=dtype)
    slots = torch.empty(16, dtype=torch.long)
    store_kv(keys, torch.empty_like(keys), slots, cache, torch.empty_like(cache), backend="triton")


def _weight(shape: LaunchShape, width: int) -> Tensor:
    return torch.empty(shape.vocab, width, dtype=shape.dtype)  # never written, so it takes no memory


def _keys(rows: int) -> dict[str, Any]:
    integers = {name: torch.zeros(rows, dtype=torch.long) for name in ("seeds", "positions", "choices")}
    return {**integers, "temperature": torch.empty(rows)}


def _tilt(shape: LaunchShape, rows: int) -> dict[str, Any]:
    place = torch.zeros(rows, dtype=torch.long)  # torch looks rows up by it
    return {"advantage": torch.empty(rows, shape.vocab), "advantage_row": place}


def _cuts(rows: int, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: torch.empty(rows, dtype=torch.long if name == "top_k" else torch.float32) for name in names}


def _subsets(names: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [subset for size in range(1, len(names) + 1) for subset in itertools.combinations(names, size)]
