"""The compiled draw is `guided_logits`'s, for every kind of row at once."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from torch import Tensor

from trimtab.kernels.compiled_draw import CompiledDraw
from trimtab.kernels.guided_logits import GuidedDraw, guided_logits

VOCAB_SIZE = 1001
FIELDS = ("logprob", "base_logprob", "kl", "soft_value", "entropy", "lse_base", "lse_guided")

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler: g++")


@pytest.fixture(scope="module")
def compiled() -> CompiledDraw:
    return CompiledDraw(VOCAB_SIZE)


def make_rows(num_rows: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(num_rows)

    def integers(low: int, high: int) -> Tensor:
        return torch.randint(low, high, (num_rows,), generator=generator)

    logits = 2 * torch.randn(num_rows, VOCAB_SIZE, generator=generator)
    logits[:, 5] = logits[:, 900] = logits.amax(1)  # a tie for the greedy
    logits[:, 17:40] = -torch.inf
    return {
        "logits": logits,
        "seeds": integers(-(2**63), 2**63 - 1),
        "positions": integers(0, 2**31),
        "choices": integers(0, 5),
        "temperature": torch.tensor([0.0, 1.0, 0.7, 3.0])[integers(0, 4)],
    }


def make_guidance(num_rows: int, num_guided: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(99 + num_rows)
    advantage_row = torch.full((num_rows,), -1)
    advantage_row[:num_guided] = torch.randperm(num_guided, generator=generator)
    return {
        "advantage": torch.randn(num_guided, VOCAB_SIZE, generator=generator) + 1e3,
        "advantage_row": advantage_row,
        "beta": torch.linspace(-2, 3, num_rows).round(),
    }


def assert_same(actual: GuidedDraw, expected: GuidedDraw) -> None:
    assert torch.equal(actual.token, expected.token)
    assert torch.equal(actual.flip, expected.flip)
    for field in FIELDS:
        torch.testing.assert_close(
            getattr(actual, field), getattr(expected, field), rtol=1e-4, atol=1e-4, equal_nan=True, msg=field
        )


@pytest.mark.parametrize("num_rows", [1, 2, 7, 33])
def test_plain_rows(compiled: CompiledDraw, num_rows: int) -> None:
    rows = make_rows(num_rows)
    assert_same(compiled(**rows), guided_logits(**rows, want_entropy=True))


@pytest.mark.parametrize(("num_rows", "num_guided"), [(1, 1), (7, 1), (7, 7), (33, 20)])
def test_guided_rows_beside_plain_ones(compiled: CompiledDraw, num_rows: int, num_guided: int) -> None:
    rows: dict[str, Any] = {**make_rows(num_rows), **make_guidance(num_rows, num_guided)}
    assert_same(compiled(**rows), guided_logits(**rows, want_entropy=True))


def test_a_batch_of_greedy_rows(compiled: CompiledDraw) -> None:
    rows: dict[str, Any] = make_rows(7) | {"temperature": torch.zeros(7)}
    actual = compiled(**rows, any_sampled=False)
    assert torch.equal(actual.token, rows["logits"].argmax(1))
    assert torch.equal(actual.token, compiled(**rows).token), "as among sampled ones"


@pytest.mark.parametrize("num_guided", [0, 4])
def test_truncated_rows(compiled: CompiledDraw, num_guided: int) -> None:
    rows: dict[str, Any] = make_rows(7)
    if num_guided:
        rows |= make_guidance(7, num_guided)
    rows |= {"top_k": torch.tensor([0, 1, 2, 40, 0, 3, 7]), "top_p": torch.linspace(0.1, 1, 7)}
    expected = guided_logits(**rows)
    assert torch.equal(compiled(**rows).token, expected.token)
    del rows["top_k"], rows["top_p"]
    assert not torch.equal(compiled(**rows).token, expected.token), "the cut mattered"


def test_broken_rows_draw_no_token_and_harm_no_other(compiled: CompiledDraw) -> None:
    rows: dict[str, Any] = {**make_rows(7), **make_guidance(7, 7)}
    rows["logits"][2, 3] = torch.nan
    rows["logits"][4] = -torch.inf
    actual = compiled(**rows)
    assert (actual.token == -1).tolist() == [False, False, True, False, True, False, False]
    assert_same(actual, guided_logits(**rows, want_entropy=True))


def test_rows_without_a_tilt_are_bitwise_what_they_are_without_guidance(compiled: CompiledDraw) -> None:
    rows = make_rows(33)
    guidance = make_guidance(33, 20)
    plain, mixed = compiled(**rows), compiled(**rows, **guidance)
    untilted = (guidance["advantage_row"] < 0) | (guidance["beta"] == 0)
    assert untilted.any()
    for field in ("token", *FIELDS):
        a, b = getattr(plain, field)[untilted], getattr(mixed, field)[untilted]
        if field == "entropy":  # summed by another loop
            torch.testing.assert_close(a, b, rtol=1e-6, atol=0)
        else:
            assert torch.equal(a, b), field
