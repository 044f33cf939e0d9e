"""The fused head's reference, and how tiles merge. The kernel itself: interpreted/test_guided_head.py."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from trimtab.kernels.guided_head import guided_head
from trimtab.kernels.guided_logits import GuidedDraw, guided_logits
from trimtab.kernels.tile_reduce import TilePartials, join_shards, tile_reduce

FIELDS = [field.name for field in dataclasses.fields(GuidedDraw)]
DEPTH, RANK = 24, 6


@dataclasses.dataclass(frozen=True)
class Batch:
    h: Tensor
    weight: Tensor
    column: Tensor
    inner: Tensor
    up: Tensor
    keys: dict[str, Any]


def make_batch(oracle: SimpleNamespace, num_rows: int = 30, vocab_size: int = 500) -> Batch:
    generator = torch.Generator().manual_seed(num_rows)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    _, keys = oracle.make_batch(num_rows, vocab_size)
    del keys["advantage"], keys["advantage_row"]
    return Batch(
        normal(num_rows, DEPTH), normal(vocab_size, DEPTH), 0.2 * normal(num_rows, DEPTH),
        normal(num_rows, RANK), 0.3 * normal(vocab_size, RANK), keys,
    )  # fmt: skip


def exact_draw(oracle: SimpleNamespace, batch: Batch, tied: bool, low_rank: bool) -> Any:
    advantage = torch.zeros(len(batch.h), len(batch.weight), dtype=torch.float64)
    if tied:
        advantage += batch.column.double() @ batch.weight.double().T
    if low_rank:
        advantage += batch.inner.double() @ batch.up.double().T
    rows = torch.arange(len(batch.h))
    logits = batch.h.double() @ batch.weight.double().T
    return oracle.measure(logits, batch.keys | {"advantage": advantage, "advantage_row": rows})


@pytest.mark.parametrize(
    ("tied", "low_rank"), [(True, False), (False, True), (True, True), (False, False)], ids=str
)
def test_the_advantage_is_the_sum_of_the_parts_given(oracle: SimpleNamespace, tied: bool, low_rank: bool):
    batch = make_batch(oracle)
    keys = batch.keys if tied or low_rank else {**batch.keys, "beta": None}
    draw = guided_head(
        batch.h,
        batch.weight,
        **keys,
        column=batch.column if tied else None,
        lowrank=(batch.inner, batch.up) if low_rank else None,
        want_entropy=True,
    )
    exact = exact_draw(oracle, batch, tied, low_rank)
    assert exact.is_near_tie(draw.token).all()
    at = draw.token[:, None]
    assert (draw.logprob - exact.guided.gather(1, at)[:, 0]).abs().max() <= 1e-4
    assert (draw.base_logprob - exact.base.gather(1, at)[:, 0]).abs().max() <= 1e-4
    assert ((draw.kl - exact.kl).abs() <= 1e-5 + 1e-4 * exact.kl).all()
    assert (draw.soft_value - exact.soft_value).abs().max() <= 1e-4
    assert draw.entropy is not None
    assert (draw.entropy - exact.entropy).abs().max() <= 1e-4


def test_rows_without_a_tilt_are_bitwise_what_they_are_without_guidance(oracle: SimpleNamespace):
    batch = make_batch(oracle)
    plain = batch.keys["beta"] == 0
    plain[3] = True
    batch.column[3] = 0
    mixed = guided_head(batch.h, batch.weight, **batch.keys, column=batch.column)
    alone = guided_head(batch.h, batch.weight, **{**batch.keys, "beta": None})
    for name in FIELDS:
        if name != "entropy":
            assert torch.equal(getattr(mixed, name)[plain], getattr(alone, name)[plain]), name
    assert (mixed.kl[~plain] > 0).any()


def test_columns_of_another_type_are_rounded_to_the_matrix_s(oracle: SimpleNamespace):
    batch = make_batch(oracle)
    h, weight, up = batch.h.bfloat16(), batch.weight.bfloat16(), batch.up.bfloat16()
    given, rounded = (
        guided_head(h, weight, **batch.keys, column=column, lowrank=(inner, up))
        for column, inner in (
            (batch.column, batch.inner),
            (batch.column.bfloat16(), batch.inner.bfloat16()),
        )
    )
    assert torch.equal(given.logprob, rounded.logprob)


def partials_of(logits: Tensor, advantage: Tensor, beta: Tensor, tile: int) -> TilePartials:
    """What tiles of `tile` tokens measure for a greedy draw, as `TilePartials` defines it."""
    shift = beta[:, None] * (advantage - advantage[:, :1])
    values, tokens = [], []
    for start in range(0, logits.shape[1], tile):
        part = slice(start, start + tile)
        z, s = logits[:, part], shift[:, part]
        ell = z + s
        mass, guided_mass = (z - z.amax(1, True)).exp(), (ell - ell.amax(1, True)).exp()
        best, favourite = ell.argmax(1, True), z.argmax(1, True)
        above = (advantage - advantage[:, :1])[:, part].masked_fill(beta[:, None] == 0, 0)
        columns = [
            z.amax(1), mass.sum(1), (mass * (z - z.amax(1, True))).sum(1), ell.amax(1),
            ell.gather(1, best)[:, 0], z.gather(1, best)[:, 0], (mass * above).sum(1), ell.amax(1),
            guided_mass.sum(1), (guided_mass * s).sum(1), ell.gather(1, favourite)[:, 0],
        ]  # fmt: skip
        values.append(torch.stack(columns))
        tokens.append(best[:, 0] + start)
    return TilePartials(torch.stack(values, 2), torch.stack(tokens, 1))


@pytest.mark.parametrize("tile", [1, 64, 500])
def test_tiles_merge_into_the_draw_of_the_whole_vocabulary(oracle: SimpleNamespace, tile: int):
    logits, arguments = oracle.make_batch(30, 500)
    logits = logits.clamp(min=-30)
    arguments["temperature"] = torch.zeros(30)
    arguments["advantage_row"] %= len(arguments["advantage"])
    advantage = arguments["advantage"][arguments["advantage_row"]]
    whole = guided_logits(logits, **arguments, want_entropy=True)
    partials = partials_of(logits, advantage, arguments["beta"], tile)
    merged = tile_reduce(partials, arguments["beta"], want_entropy=True)
    assert torch.equal(merged.token, whole.token)
    assert torch.equal(merged.flip, whole.flip)
    for name in FIELDS:
        # A soft value is divided by a strength of 0.01.
        torch.testing.assert_close(getattr(merged, name), getattr(whole, name), rtol=1e-5, atol=1e-4)
    plain = tile_reduce(TilePartials(partials.values[:5], partials.tokens), None)
    unguided = arguments["beta"] == 0
    assert torch.equal(plain.logprob[unguided], merged.logprob[unguided])


def test_joined_shards_are_the_tiles_of_the_whole(oracle: SimpleNamespace):
    logits, arguments = oracle.make_batch(6, 400)
    advantage = arguments["advantage"][arguments["advantage_row"].clamp(min=0)]
    whole = partials_of(logits, advantage, arguments["beta"], 100)
    shards = [
        TilePartials(whole.values[:, :, part], whole.tokens[:, part]) for part in (slice(1), slice(1, 4))
    ]
    joined = join_shards(shards)
    assert torch.equal(joined.values.nan_to_num(), whole.values.nan_to_num())
    assert torch.equal(joined.tokens, whole.tokens)


def test_a_broken_row_draws_no_token(oracle: SimpleNamespace):
    batch = make_batch(oracle)
    whole = guided_head(batch.h, batch.weight, **batch.keys, column=batch.column)
    batch.h[3, 5], batch.column[7, 1] = torch.nan, torch.nan
    draw = guided_head(batch.h, batch.weight, **batch.keys, column=batch.column)
    good = torch.arange(30) % 30 != 3
    good[7] = False
    assert draw.token[~good].tolist() == [-1, -1]
    assert torch.equal(draw.logprob[good], whole.logprob[good])
