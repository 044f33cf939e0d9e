from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from trimtab.kernels.base_statistics import BLOCK_V, base_statistics
from trimtab.kernels.guided_logits import GuidedDraw, guided_logits

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FIELDS = [field.name for field in dataclasses.fields(GuidedDraw)]


def place(arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.to(DEVICE) if isinstance(value, Tensor) else value for name, value in arguments.items()
    }


def run(logits: Tensor, arguments: dict[str, Any], **more: Any) -> GuidedDraw:
    return guided_logits(logits.to(DEVICE), **place(arguments | more), backend="triton")


def rows_of(arguments: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    return {name: value if name == "advantage" else value[rows] for name, value in arguments.items()}


def same(a: GuidedDraw, b: GuidedDraw, rows_a: Tensor | slice, rows_b: Tensor | slice) -> bool:
    """Bitwise, NaN equal to NaN."""
    pairs = ((getattr(a, name), getattr(b, name)) for name in FIELDS)
    return all(
        (x is None and y is None)
        or torch.equal(x[rows_a].nan_to_num(nan=1e30), y[rows_b].nan_to_num(nan=1e30))
        for x, y in pairs
    )


@pytest.mark.parametrize("vocab_size", [3, BLOCK_V, BLOCK_V + 1, 2 * BLOCK_V + 907])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_draws_and_statistics_agree_with_float64_and_the_reference(
    oracle: SimpleNamespace, vocab_size: int, offset: float
):
    logits, arguments = oracle.make_batch(12, vocab_size, offset=offset)
    logits[:, 0] = logits[:, 0].clamp(min=-5)
    draw = run(logits, arguments, want_entropy=True)
    exact = oracle.measure(logits, arguments)
    reference = guided_logits(logits, **arguments)
    token = draw.token.cpu()
    for other in (exact.token, reference.token):
        assert exact.is_near_tie(token)[token != other].all()
        assert (token != other).sum() <= 1
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
        torch.testing.assert_close(getattr(draw, name).cpu(), getattr(reference, name), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("cut", ["min_p", "top_k", "top_p", "all"])
def test_truncated_draws_are_the_reference_s(oracle: SimpleNamespace, cut: str):
    logits, arguments = oracle.make_batch(20, 700, seed=3)
    cuts = {
        "min_p": torch.full((20,), 0.05),
        "top_k": torch.arange(20) % 4,
        "top_p": torch.linspace(0.1, 1, 20),
    }
    arguments |= cuts if cut == "all" else {cut: cuts[cut]}
    token = run(logits, arguments).token.cpu()
    exact = oracle.measure(logits, arguments)
    assert exact.score.gather(1, token[:, None]).isfinite().all()
    assert torch.equal(token, exact.token)


def test_rows_are_bitwise_the_same_in_every_batch(oracle: SimpleNamespace):
    logits, arguments = oracle.make_batch(128, 100)
    whole = run(logits, arguments)
    everyone = torch.arange(128)
    for size in (1, 2, 3, 7, 16, 17, 33, 64, 65):
        rows = everyone[-size:].flip(0)
        part = run(logits[rows], rows_of(arguments, rows))
        assert same(part, whole, slice(None), rows.to(DEVICE)), size


def test_rows_without_a_tilt_are_bitwise_what_they_are_without_guidance(oracle: SimpleNamespace):
    logits, arguments = oracle.make_batch(12, BLOCK_V + 50)
    plain = (arguments["advantage_row"] < 0) | (arguments["beta"] == 0)
    mixed = run(logits, arguments, want_entropy=True)
    alone = run(logits, arguments, advantage=None, advantage_row=None, beta=None, want_entropy=True)
    assert same(mixed, alone, plain.to(DEVICE), plain.to(DEVICE))
    assert not (mixed.kl + mixed.soft_value)[plain.to(DEVICE)].any()


def test_a_broken_row_draws_no_token_and_harms_no_other(oracle: SimpleNamespace):
    logits, arguments = oracle.make_batch(8, BLOCK_V + 50)
    arguments |= {"top_k": torch.full((8,), 5)}
    whole = run(logits, arguments)
    logits[3, BLOCK_V + 7], logits[4], logits[5, 0] = torch.nan, -torch.inf, torch.inf
    draw = run(logits, arguments)
    assert draw.token[3:6].tolist() == [-1, -1, -1]
    assert draw.logprob[3:6].isnan().all()
    good = torch.tensor([0, 1, 2, 6, 7], device=DEVICE)
    assert same(draw, whole, good, good)


def test_a_mask_that_leaves_one_token_draws_it(oracle: SimpleNamespace):
    logits, arguments = oracle.make_batch(6, BLOCK_V + 50, offset=1e3)
    logits = torch.full_like(logits, -torch.inf)
    logits[:, BLOCK_V + 1] = -3
    draw = run(logits, arguments)
    assert (draw.token == BLOCK_V + 1).all()
    assert draw.logprob.abs().max() < 1e-6
    assert draw.kl.abs().max() < 1e-6


def test_rounding_never_makes_a_kl_negative():
    generator = torch.Generator().manual_seed(0)
    logits, advantage = (torch.randn(40, 50, generator=generator) for _ in range(2))
    ids = torch.arange(40)
    arguments = {"seeds": ids, "positions": ids, "choices": ids, "temperature": torch.ones(40)}
    arguments |= {"advantage": advantage, "advantage_row": ids, "beta": torch.full((40,), 1e-5)}
    draw = run(logits, arguments)
    assert draw.kl.min() == 0
    assert draw.kl.max() < 1e-6


def test_greedy_takes_the_lowest_id_of_a_tie_across_tiles():
    logits = torch.zeros(2, 2 * BLOCK_V)
    logits[0, [BLOCK_V - 1, BLOCK_V, BLOCK_V + 1]] = 2.0
    zero = torch.zeros(2, dtype=torch.long)
    arguments = {"seeds": zero, "positions": zero, "choices": zero, "temperature": torch.zeros(2)}
    for any_sampled in (True, False):
        assert run(logits, arguments, any_sampled=any_sampled).token.tolist() == [BLOCK_V - 1, 0]


def test_base_statistics_agree_with_the_reference(oracle: SimpleNamespace):
    logits, arguments = oracle.make_batch(8, 2 * BLOCK_V + 5, offset=1e3)
    given = (logits.to(DEVICE), arguments["advantage"].to(DEVICE), arguments["advantage_row"].to(DEVICE))
    expected = base_statistics(*given, want_entropy=True, backend="reference")
    found = base_statistics(*given, want_entropy=True, backend="triton")
    for field in dataclasses.fields(found):
        torch.testing.assert_close(
            getattr(found, field.name), getattr(expected, field.name), rtol=1e-5, atol=1e-5
        )
