from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from trimtab.kernels.guided_head import (
    BLOCK_BYTES,
    BLOCK_V,
    HeadInputs,
    advantage_pivot,
    guided_head,
    head_partials,
)
from trimtab.kernels.guided_logits import GuidedDraw, guided_logits
from trimtab.kernels.tile_reduce import TilePartials, join_shards, tile_reduce

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FIELDS = [field.name for field in dataclasses.fields(GuidedDraw)]
SHARED = {"weight", "up"}  # by the rows of a batch
RANK = 20
BLOCK_K = BLOCK_BYTES // 2
# bf16 products are silently wrong in the interpreter.
HALF = torch.bfloat16 if DEVICE == "cuda" else torch.float16


def make_batch(
    num_rows: int,
    vocab_size: int,
    depth: int,
    *,
    dtype: torch.dtype = torch.float32,
    parts: str = "both",
    offset: float = 0.0,
) -> dict[str, Any]:
    """Arguments of a batch that mixes temperatures, strengths and rows without an advantage.

    The matrices' entries are so coarse that every product and sum is exact in fp32: no test depends on the
    order in which the interpreter's matrix product adds.
    """
    generator = torch.Generator().manual_seed(num_rows + vocab_size + depth)

    def coarse(*shape: int, step: float) -> Tensor:
        return (torch.randn(*shape, generator=generator).clamp(-3, 3) / step).round() * step

    index = torch.arange(num_rows)
    arguments = {
        "h": coarse(num_rows, depth, step=0.25),
        "weight": coarse(vocab_size, depth, step=0.25) / 4,
        "seeds": torch.randint(-(2**63), 2**63 - 1, (num_rows,), generator=generator),
        "positions": torch.randint(0, 5000, (num_rows,), generator=generator),
        "choices": index % 2,
        "temperature": torch.tensor([1.0, 0.7, 0.0, 2.0, 1.0])[index % 5],
        "beta": torch.tensor([1.0, -2.0, 0.3, 0.0, 2.0, 0.01])[index % 6],
    }
    if parts in ("tied", "both"):
        arguments["column"] = coarse(num_rows, depth, step=0.25) / 8
        arguments["column"][index % 7 == 4] = 0
    if parts in ("lowrank", "both"):
        arguments["inner"], arguments["up"] = (
            coarse(num_rows, RANK, step=0.25),
            coarse(vocab_size, RANK, step=0.25),
        )
        arguments["inner"][:, 0], arguments["up"][:, 0] = offset, 1
        arguments["inner"][index % 7 == 4] = 0
    if parts == "none":
        del arguments["beta"]
    for name in {"h", "weight", "column", "inner", "up"} & arguments.keys():
        arguments[name] = arguments[name].to(dtype)
    return arguments


def run(arguments: dict[str, Any], **more: Any) -> GuidedDraw:
    placed = {name: value.to(DEVICE) for name, value in arguments.items()}
    if "up" in placed:
        placed["lowrank"] = (placed.pop("inner"), placed.pop("up"))
    return guided_head(**placed, **more, backend="triton")


def rows_of(arguments: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    return {name: value if name in SHARED else value[rows] for name, value in arguments.items()}


def without_tilt(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name not in ("column", "inner", "up", "beta")}


def materialise(arguments: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """Logits and arguments of `guided_logits`, the products in float64."""
    keyed = {name: arguments[name] for name in ("seeds", "positions", "choices", "temperature")}
    logits, advantage = arguments["h"].double() @ arguments["weight"].double().T, None
    if "column" in arguments:
        advantage = arguments["column"].double() @ arguments["weight"].double().T
    if "up" in arguments:
        low_rank = arguments["inner"].double() @ arguments["up"].double().T
        advantage = low_rank if advantage is None else advantage + low_rank
    if advantage is not None:
        keyed |= {
            "advantage": advantage,
            "advantage_row": torch.arange(len(logits)),
            "beta": arguments["beta"],
        }
    return logits, keyed


def same(a: GuidedDraw, b: GuidedDraw, rows_a: Tensor | slice, rows_b: Tensor | slice) -> bool:
    """Bitwise, NaN equal to NaN."""
    pairs = ((getattr(a, name), getattr(b, name)) for name in FIELDS)
    return all(
        (x is None and y is None)
        or torch.equal(x[rows_a].nan_to_num(nan=1e30), y[rows_b].nan_to_num(nan=1e30))
        for x, y in pairs
    )


def check(draw: GuidedDraw, arguments: dict[str, Any], oracle: SimpleNamespace) -> None:
    """The draw is that of float64 and of materialised logits, the statistics are within their errors."""
    logits, keyed = materialise(arguments)
    exact = oracle.measure(logits, keyed)
    single = {name: value.float() if name == "advantage" else value for name, value in keyed.items()}
    materialised = guided_logits(logits.float(), **single, backend="reference")
    token = draw.token.cpu()
    assert torch.equal(token, exact.token)
    assert torch.equal(token, materialised.token)
    at = token[:, None]
    assert (draw.logprob.cpu() - exact.guided.gather(1, at)[:, 0]).abs().max() <= 1e-4
    assert (draw.base_logprob.cpu() - exact.base.gather(1, at)[:, 0]).abs().max() <= 1e-4
    assert ((draw.kl.cpu() - exact.kl).abs() <= 1e-5 + 1e-4 * exact.kl).all()
    assert (draw.kl >= 0).all()
    assert (draw.soft_value.cpu() - exact.soft_value).abs().max() <= 1e-4
    assert draw.entropy is not None
    assert (draw.entropy.cpu() - exact.entropy).abs().max() <= 1e-4
    assert torch.equal(draw.flip.cpu(), exact.flip)
    for name in ("lse_base", "lse_guided"):
        torch.testing.assert_close(
            getattr(draw, name).cpu(), getattr(materialised, name), rtol=1e-6, atol=2e-5
        )


EVERYONE = slice(None)


@pytest.mark.parametrize(
    ("num_rows", "vocab_size", "depth", "dtype", "parts", "offset"),
    [
        (1, 3, 8, torch.float32, "both", 0.0),
        (2, BLOCK_V, BLOCK_K, torch.float32, "tied", 0.0),
        (7, BLOCK_V + 1, BLOCK_K + 1, torch.float32, "lowrank", 1000.0),
        (17, 2 * BLOCK_V + 45, 2 * BLOCK_K + 20, torch.float32, "both", 0.0),
        (16, BLOCK_V + 60, 24, HALF, "none", 0.0),
        (19, BLOCK_V + 60, 24, HALF, "both", 1000.0),
        (33, 100, BLOCK_K, HALF, "tied", 0.0),
        (64, BLOCK_V + 4, 3 * BLOCK_K, HALF, "both", 0.0),
    ],
)
def test_draws_and_statistics_agree_with_float64_and_with_materialised_logits(
    oracle: SimpleNamespace,
    num_rows: int,
    vocab_size: int,
    depth: int,
    dtype: torch.dtype,
    parts: str,
    offset: float,
):
    arguments = make_batch(num_rows, vocab_size, depth, dtype=dtype, parts=parts, offset=offset)
    check(run(arguments, want_entropy=True), arguments, oracle)


@pytest.mark.parametrize(
    "mutation", ["a strength off by 5 %", "noise keyed by row", "a row of another request"]
)
def test_the_comparison_with_float64_can_fail(oracle: SimpleNamespace, mutation: str):
    arguments = make_batch(8, 200, 24)
    wrong = {
        "a strength off by 5 %": {"beta": arguments["beta"] * 1.05},
        "noise keyed by row": {"positions": arguments["positions"] + torch.arange(8)},
        "a row of another request": {"column": arguments["column"].roll(1, 0)},
    }
    with pytest.raises(AssertionError):
        check(run(arguments | wrong[mutation], want_entropy=True), arguments, oracle)


def test_rows_are_bitwise_the_same_in_every_batch():
    arguments = make_batch(65, BLOCK_V + 2, 24, dtype=HALF)
    whole = run(arguments)
    for size in (1, 2, 3, 7, 16, 17, 33, 64):
        rows = torch.randperm(65, generator=torch.Generator().manual_seed(size))[:size]
        assert same(run(rows_of(arguments, rows)), whole, EVERYONE, rows.to(DEVICE)), size


def test_rows_without_a_tilt_are_bitwise_what_they_are_without_guidance():
    arguments = make_batch(21, BLOCK_V + 50, 24, dtype=HALF)
    plain = (arguments["beta"] == 0) | ~arguments["column"].any(1)
    assert plain.sum() >= 5
    mixed = run(arguments, want_entropy=True)
    alone = run(without_tilt(arguments), want_entropy=True)
    plain = plain.to(DEVICE)
    assert same(mixed, alone, plain, plain)
    assert not (mixed.kl + mixed.soft_value)[plain].any()
    assert (mixed.kl[~plain] > 0).all()


def test_a_broken_row_draws_no_token_and_harms_no_other():
    arguments = make_batch(12, BLOCK_V + 50, 24)
    whole = run(arguments)
    arguments["h"][3, 7] = torch.nan
    arguments["column"][6, 2] = torch.nan
    arguments["column"][9, 2], arguments["inner"][9, 2] = torch.nan, torch.inf  # at strength 0
    draw = run(arguments)
    assert draw.token[3] == draw.token[6] == -1
    assert draw.logprob[[3, 6]].isnan().all()
    good = torch.tensor([0, 1, 2, 4, 5, 7, 8, 9, 10, 11], device=DEVICE)
    assert arguments["beta"][9] == 0
    assert same(draw, whole, good, good)


def test_a_weak_tilt_has_the_soft_value_of_its_second_order(oracle: SimpleNamespace):
    arguments = make_batch(6, 200, 24)
    arguments["beta"] = torch.tensor([1e-7, -1e-7, 1e-5, -1e-5, 1e-4, 1e-3])
    draw, exact = run(arguments), oracle.measure(*materialise(arguments))
    torch.testing.assert_close(draw.soft_value.cpu().double(), exact.soft_value, rtol=0.02, atol=1e-6)
    assert (draw.kl.cpu() <= 2 * exact.kl + 1e-6).all()


def test_greedy_takes_the_lowest_id_of_a_tie():
    arguments = make_batch(6, 3 * BLOCK_V, 24)
    arguments["temperature"] = torch.zeros(6)
    arguments["weight"] = arguments["weight"][:1].repeat(3 * BLOCK_V, 1)
    arguments["up"] = arguments["up"][:1].repeat(3 * BLOCK_V, 1)
    assert run(arguments).token.tolist() == [0] * 6
    arguments["h"] = arguments["h"].abs()
    arguments["weight"] = arguments["weight"].abs() * 0.5
    ties = [BLOCK_V + 77, BLOCK_V + 78, 2 * BLOCK_V + 3]
    arguments["weight"][ties] *= 2
    draw = run(without_tilt(arguments))
    assert draw.token.tolist() == [ties[0]] * 6


@pytest.mark.parametrize("rival", [90, BLOCK_V + 5])
def test_of_a_base_s_two_favourites_the_lowest_id_decides_whether_the_tilt_flips_it(rival: int):
    arguments = make_batch(2, 2 * BLOCK_V, 8, parts="lowrank")
    for name in ("h", "weight", "inner", "up"):
        arguments[name].zero_()
    arguments["h"][:, 0] = arguments["weight"][[5, rival], 0] = arguments["beta"][:] = 1
    arguments["up"][[5, rival], [0, 1]] = 1
    arguments["inner"][[0, 1], [0, 1]] = 1  # row 0 prefers token 5, row 1 its rival
    assert run(arguments).flip.tolist() == [False, True]


def test_hints_about_temperatures_change_no_draw():
    arguments = make_batch(8, 200, 24)
    for temperature in (torch.zeros(8), torch.ones(8)):
        arguments["temperature"] = temperature
        greedy = not temperature.any()
        hinted = run(arguments, any_greedy=greedy, any_sampled=not greedy)
        assert same(hinted, run(arguments), EVERYONE, EVERYONE)


def test_rows_of_a_larger_matrix_are_read_in_place():
    arguments = make_batch(5, 200, 24)
    wide = {name: torch.cat([arguments[name]] * 2, 1)[:, :24] for name in ("h", "weight", "column")}
    assert not wide["weight"].is_contiguous()
    assert same(run(arguments | wide), run(arguments), EVERYONE, EVERYONE)


def test_shards_of_the_vocabulary_merge_into_the_whole():
    arguments = {name: value.to(DEVICE) for name, value in make_batch(9, 3 * BLOCK_V + 7, 24).items()}
    inputs = HeadInputs(**arguments, want_entropy=True, any_greedy=True, any_sampled=True)
    pivot, cut = advantage_pivot(inputs), 2 * BLOCK_V
    assert inputs.up is not None
    first = dataclasses.replace(inputs, weight=inputs.weight[:cut], up=inputs.up[:cut])
    second = dataclasses.replace(inputs, weight=inputs.weight[cut:], up=inputs.up[cut:])
    joined = join_shards([head_partials(first, pivot), head_partials(second, pivot, vocab_offset=cut)])
    merged = tile_reduce(joined, inputs.beta, want_entropy=True, backend="triton")
    assert same(merged, run(arguments, want_entropy=True), EVERYONE, EVERYONE)


@pytest.mark.parametrize("tilts", [False, True])
def test_tiles_merge_as_the_reference_merges_them(tilts: bool):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(11, 6, 300, generator=generator)
    values[[1, 8]] = values[[1, 8]].exp()
    values[:, 1, 5:7], values[1, 1, 5:7], values[8, 1, 5:7] = -torch.inf, 0, 0  # of tiles that hold no token
    values[[2, 4, 5, 6, 9], 1, 5:7] = 0
    values[1, 2, 9] = values[8, 2, 9] = torch.nan
    partials = TilePartials(values.to(DEVICE), torch.arange(1800, device=DEVICE).view(6, 300))
    beta = torch.tensor([1.0, -2.0, 1.0, 0.5, 3.0, -0.1], device=DEVICE) if tilts else None
    merged, expected = (
        tile_reduce(partials, beta, want_entropy=True, backend=name) for name in ("triton", "reference")
    )
    assert merged.token[2] == expected.token[2] == -1
    for name in FIELDS:
        torch.testing.assert_close(
            getattr(merged, name), getattr(expected, name), rtol=1e-5, atol=1e-5, equal_nan=True
        )
