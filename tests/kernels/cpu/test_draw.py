"""That every instruction set draws, cuts and solves as the oracle and the reference do, and no bit of a row
depends on others."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tilt_oracle import make_limits
from torch import Tensor
from truncation_oracle import disagreements, make_cuts

from trimtab.kernels.base_statistics import base_statistics
from trimtab.kernels.cpu import draw as cpu
from trimtab.kernels.cpu.library import Library
from trimtab.kernels.guided_logits import guided_logits, tilted_logits
from trimtab.kernels.penalties import apply_token_mask
from trimtab.kernels.philox import gumbel_noise
from trimtab.kernels.tile_reduce import GuidedDraw
from trimtab.kernels.tilt import solve_tilt

FIELDS = [field.name for field in dataclasses.fields(GuidedDraw)]
NO_TILT: dict[str, Any] = {"advantage": None, "advantage_row": None, "beta": None}


@pytest.fixture
def threads(library: Library) -> Iterator[Library]:
    before = library.num_threads
    yield library
    library.set_num_threads(before)


def draw(library: Library, logits: Tensor, **arguments: Any) -> GuidedDraw:
    return GuidedDraw(*cpu.draw(logits, **{"want_entropy": True} | arguments, isa=library.isa))


def same(mine: GuidedDraw, others: GuidedDraw, rows: Tensor) -> bool:
    pairs = ((getattr(mine, name), getattr(others, name)[rows]) for name in FIELDS)
    return all(torch.equal(a.nan_to_num(nan=1e30), b.nan_to_num(nan=1e30)) for a, b in pairs)


@pytest.mark.parametrize("vocab_size", [1, 5, 63, 2049, 5003])
def test_tokens_and_statistics_are_those_of_float64(
    vocab_size: int, library: Library, oracle: SimpleNamespace
):
    logits, arguments = oracle.make_batch(60, vocab_size, offset=100.0)
    logits[:, 0] = logits[:, 0].clamp(min=-5)
    arguments["temperature"] = torch.tensor([1.0, 0.0, 0.03, 100.0, 1e-30])[torch.arange(60) % 5]
    found, exact = draw(library, logits, **arguments), oracle.measure(logits, arguments)
    wrong = found.token != exact.token
    assert exact.is_near_tie(found.token)[wrong].all()
    assert wrong.sum() <= 1
    at = found.token[:, None]
    assert (found.logprob - exact.guided.gather(1, at)[:, 0]).abs().max() <= 1e-5
    assert (found.base_logprob - exact.base.gather(1, at)[:, 0]).abs().max() <= 1e-5
    assert ((found.kl - exact.kl).abs() <= 1e-6 + 1e-5 * exact.kl).all()
    assert (found.soft_value - exact.soft_value).abs().max() <= 1e-4
    assert (found.entropy - exact.entropy).abs().max() <= 1e-5
    assert torch.equal(found.flip, exact.flip)


def test_no_bit_of_a_row_depends_on_its_batch_or_on_the_number_of_threads(
    threads: Library, oracle: SimpleNamespace
):
    logits, arguments = oracle.make_batch(12, 20011)
    logits[7, 9] = torch.nan
    arguments |= {"top_p": torch.linspace(0.3, 1.4, 12), "top_k": torch.arange(12) % 4 * 30}
    whole = draw(threads, logits, **arguments)
    assert whole.token[7] == -1
    for count, rows in ((1, torch.arange(12)), (2, torch.tensor([3])), (3, torch.tensor([11, 4, 7, 0, 5]))):
        threads.set_num_threads(count)
        part = {name: x if name == "advantage" else x[rows] for name, x in arguments.items()}
        assert same(draw(threads, logits[rows], **part), whole, rows)


def test_rows_without_a_tilt_are_bitwise_what_they_are_without_guidance(
    library: Library, oracle: SimpleNamespace
):
    logits, arguments = oracle.make_batch(30, 3000)
    plain = ((arguments["advantage_row"] < 0) | (arguments["beta"] == 0)).nonzero()[:, 0]
    mixed, alone = draw(library, logits, **arguments), draw(library, logits, **arguments | NO_TILT)
    rows = {name: getattr(mixed, name)[plain] for name in FIELDS}
    assert same(GuidedDraw(**rows), alone, plain)


@pytest.mark.parametrize("spread", [0.0, 1.0, 8.0])
def test_cuts_keep_what_a_sort_in_float64_keeps(spread: float, library: Library):
    logits, cuts = make_cuts(60, 6000, spread)
    found = cpu.truncation_threshold(logits, **cuts, isa=library.isa)
    assert disagreements(logits, found, cuts) == []


def test_greedy_takes_the_lowest_id_of_a_tie_wherever_it_lies(library: Library):
    logits = torch.zeros(4, 5000)
    for row, token in enumerate((0, 2047, 2048, 4999)):
        logits[row, token:] = 1.0
    ids = torch.arange(4)
    keys = {"seeds": ids, "positions": ids, "choices": ids, "temperature": torch.zeros(4)}
    assert draw(library, logits, **keys, **NO_TILT).token.tolist() == [0, 2047, 2048, 4999]


def test_a_row_alone_of_one_token_is_drawn_through_any_mask(library: Library):
    logits = torch.full((3, 5003), -torch.inf)
    logits[0, 5002], logits[1, 2048] = -200.0, 30.0
    ids = torch.arange(3)
    for temperature in (0.0, 1.0, 50.0):
        keys = {"seeds": ids, "positions": ids, "choices": ids, "temperature": torch.full((3,), temperature)}
        found = draw(library, logits, **keys, **NO_TILT, top_p=torch.full((3,), 0.5))
        assert found.token.tolist() == [5002, 2048, -1]
        assert found.logprob[:2].abs().max() < 1e-6


def test_an_unlikely_token_wins_by_its_noise_and_by_no_less(library: Library):
    """Against token 0 far away, by the largest noise of 40 000: what spares noise must not spare it."""
    ids, vocab_size = torch.arange(10), 40_000
    noise = gumbel_noise(ids, ids, ids, vocab_size)
    noise[:, :2048] = -torch.inf
    token, first = noise.argmax(1), gumbel_noise(ids, ids, ids, 1)[:, 0]
    keys = {"seeds": ids, "positions": ids, "choices": ids, "temperature": torch.ones(10)}
    for margin, drawn in ((0.01, token), (-0.01, torch.zeros_like(token))):
        logits = torch.full((10, vocab_size), -torch.inf)
        logits[:, 0] = 0.0
        logits[ids, token] = first - noise.amax(1) + margin
        assert torch.equal(draw(library, logits, **keys, **NO_TILT).token, drawn)


def test_the_base_and_the_tilt_are_the_references(library: Library, oracle: SimpleNamespace):
    logits, arguments = oracle.make_batch(20, 2500, offset=10.0)
    tilt = arguments["advantage"], arguments["advantage_row"]
    top, total, entropy, mean = cpu.measure_base(logits, *tilt, True, isa=library.isa)
    exact = base_statistics(logits, *tilt, want_entropy=True, backend="reference")
    for mine, its in ((top, exact.top), (total, exact.total), (entropy, exact.entropy), (mean, exact.mean)):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        cpu.tilted_logits(logits, *tilt, arguments["beta"], isa=library.isa),
        tilted_logits(logits, *tilt, arguments["beta"], backend="reference"),
        rtol=1e-5,
        atol=1e-4,
    )


def test_strengths_are_within_a_hundredth_of_the_references(library: Library):
    rows = make_limits(48, 5003, seed=1)
    limits = {"strength": rows.strength, "kl_cap": rows.kl_cap, "lift": rows.lift}
    tilt = rows.logits, rows.advantage, rows.advantage_row
    found = cpu.solve_tilt(*tilt, **limits, isa=library.isa)
    torch.testing.assert_close(found, solve_tilt(*tilt, **limits, backend="reference"), rtol=0.01, atol=1e-6)


@pytest.mark.parametrize("vocab_size", [5, 64, 2079])
def test_masks_are_the_references(vocab_size: int, library: Library):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, vocab_size, generator=generator)
    words = torch.randint(-(2**31), 2**31, (3, -(-vocab_size // 32)), generator=generator).int()
    words[:, :2] = torch.tensor([0, -1, 1 << 30])[:, None].int()
    rows, mine, its = torch.tensor([4, 0, 2]), logits.clone(), logits.clone()
    cpu.apply_token_mask(mine, rows, words, isa=library.isa)
    apply_token_mask(its, rows, words, backend="reference")
    assert torch.equal(mine, its)


def test_a_batch_of_other_strides_and_types_draws_the_same(library: Library, oracle: SimpleNamespace):
    logits, arguments = oracle.make_batch(6, 700)
    wide = torch.full((6, 900), 50.0)
    wide[:, :700] = logits
    loose = arguments | {"beta": arguments["beta"].double(), "seeds": arguments["seeds"].repeat(2)[:6]}
    whole = draw(library, logits, **arguments)
    assert same(draw(library, wide[:, :700], **loose), whole, torch.arange(6))
    assert torch.equal(whole.token, guided_logits(logits, **arguments).token)
