from __future__ import annotations

import pytest
import torch
from host_waits import no_host_wait
from torch import Tensor
from truncation_oracle import disagreements, make_cuts, make_keys

from trimtab.kernels import truncate
from trimtab.kernels.truncate import BLOCK_V, truncate_and_draw, truncation_threshold

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL = 64  # slots and lanes of a program, so that short rows meet what long ones do


def place(arguments: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: values.to(DEVICE) for name, values in arguments.items()}


def threshold(logits: Tensor, cuts: dict[str, Tensor], backend: str = "triton") -> Tensor:
    return truncation_threshold(logits.to(DEVICE), **place(cuts), backend=backend).cpu()


def draw(logits: Tensor, arguments: dict[str, Tensor], backend: str = "triton") -> Tensor:
    return truncate_and_draw(logits.to(DEVICE), **place(arguments), backend=backend).cpu()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(truncate, "BLOCK_V", SMALL)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("vocab_size", "spread"), [(3, 1.0), (SMALL, 8.0), (150, 0.0), (300, 1.0), (300, 8.0)]
)
def test_thresholds_keep_what_a_sort_in_float64_keeps(vocab_size: int, spread: float):
    logits, cuts = make_cuts(15, vocab_size, spread, seed=vocab_size)
    assert disagreements(logits, threshold(logits, cuts), cuts) == []


@pytest.mark.parametrize("spread", [1.0, 6.0])
def test_long_rows_keep_and_draw_what_the_reference_does(spread: float):
    logits, cuts = make_cuts(5, 2 * BLOCK_V + 907, spread, seed=1)
    assert disagreements(logits, threshold(logits, cuts), cuts) == []
    arguments = make_keys(5) | cuts
    assert torch.equal(draw(logits, arguments), draw(logits, arguments, "reference"))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("cut", ["min_p", "top_k", "top_p", "none", "all"])
def test_draws_are_the_reference_s(cut: str):
    logits, cuts = make_cuts(8, 200, 2.0, seed=3)
    logits[::2] /= 20  # flat, so that tokens beyond the slots are drawn
    cuts["temperature"][::4] = 0
    kept = cuts if cut == "all" else {name: cuts[name] for name in ("temperature", cut) if name in cuts}
    arguments = make_keys(8) | kept
    assert torch.equal(draw(logits, arguments), draw(logits, arguments, "reference"))


@pytest.mark.usefixtures("small")
def test_rows_are_bitwise_the_same_in_every_batch():
    logits, cuts = make_cuts(128, SMALL, 2.0)
    index = torch.arange(128)
    cuts["top_k"] = torch.where(index % 31 == 0, 9, 0)  # few, since the interpreter searches slowly
    cuts["top_p"] = torch.where(index % 29 == 0, 0.7, 1.0)
    arguments = make_keys(128) | cuts
    whole = draw(logits, arguments)
    for size in (1, 2, 3, 7, 16, 17, 33, 64, 65):
        rows = index[-size:].flip(0)
        part = {name: values[rows] for name, values in arguments.items()}
        assert torch.equal(draw(logits[rows], part), whole[rows]), size


@pytest.mark.usefixtures("small")
def test_a_greedy_row_takes_the_lowest_id_of_a_tie():
    logits = torch.zeros(3, 3 * SMALL)
    logits[0, [SMALL - 1, SMALL, 2 * SMALL]] = 2.0
    logits[1, 5] = -1
    logits[2, :7] = -torch.inf
    arguments = make_keys(3) | {"temperature": torch.zeros(3), "top_p": torch.full((3,), 0.1)}
    assert draw(logits, arguments).tolist() == [SMALL - 1, 0, 7]


@pytest.mark.usefixtures("small")
def test_only_what_has_a_probability_is_drawn_at_any_heat():
    logits = torch.full((12, 400), -torch.inf)
    logits[:, 3::97] = -80.0
    logits[:, 200] = 0.0
    arguments = make_keys(12) | {"temperature": torch.full((12,), 100.0), "top_p": torch.full((12,), 0.999)}
    arguments["top_p"][::2] = 1
    token = draw(logits, arguments)
    assert logits.gather(1, token[:, None]).isfinite().all()
    assert len(token.unique()) > 1


@pytest.mark.usefixtures("small")
def test_a_broken_row_draws_no_token_and_harms_no_other():
    logits, cuts = make_cuts(8, SMALL + 50, 2.0)
    arguments = make_keys(8) | cuts
    whole = draw(logits, arguments)
    logits[3, SMALL + 7], logits[4], logits[5, 0] = torch.nan, -torch.inf, torch.inf
    token = draw(logits, arguments)
    assert token[3:6].tolist() == [-1, -1, -1]
    good = torch.tensor([0, 1, 2, 6, 7])
    assert torch.equal(token[good], whole[good])


@pytest.mark.usefixtures("small")
def test_the_host_waits_for_nothing():
    logits, cuts = make_cuts(2, 100, 2.0)
    keys, logits, cuts = place(make_keys(2)), logits.to(DEVICE), place(cuts)
    with no_host_wait():
        truncation_threshold(logits, **cuts, backend="triton")
        truncate_and_draw(logits, **keys, **cuts, backend="triton")
    if DEVICE == "cpu":
        with pytest.raises(AssertionError, match="waits for the device"), no_host_wait():
            truncation_threshold(logits, **cuts, backend="reference")
