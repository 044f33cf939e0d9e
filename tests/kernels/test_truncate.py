from __future__ import annotations

import math

import pytest
import torch
from truncation_oracle import by_sorting, disagreements, make_cuts, make_keys

from trimtab.kernels.guided_logits import guided_logits
from trimtab.kernels.truncate import truncate_and_draw, truncation_threshold

pytestmark = pytest.mark.usefixtures("backend")


def kept(logits: list[float], temperature: float = 1.0, **cuts: float) -> list[int]:
    row = torch.tensor([logits])
    tensors = {name: torch.tensor([value]) for name, value in cuts.items()}
    threshold = truncation_threshold(row, torch.tensor([temperature]), **tensors)
    return (row >= threshold[:, None])[0].nonzero()[:, 0].tolist()


LOGS = [math.log(p) for p in (0.4, 0.3, 0.2, 0.06, 0.04)]


def test_each_cut_alone_on_probabilities_one_can_read():
    assert kept(LOGS, min_p=0.45) == [0, 1, 2]  # at least 0.18
    assert kept(LOGS, top_k=2) == [0, 1]
    assert kept(LOGS, top_p=0.65) == [0, 1]  # 0.4 falls short, 0.7 does not
    assert kept(LOGS, top_p=0.75) == [0, 1, 2]


def test_top_p_is_of_what_min_p_and_top_k_leave():
    assert kept(LOGS, top_k=3, top_p=0.76) == [0, 1]  # 0.7 of 0.9 is 0.78
    assert kept(LOGS, min_p=0.45, top_p=0.76) == [0, 1]
    assert kept(LOGS, top_p=0.76) == [0, 1, 2]


def test_cuts_are_made_at_the_temperature():
    # At temperature 2 the weights are √p: 0.632, 0.548, 0.447, 0.245, 0.2, in all 2.072.
    assert kept(LOGS, temperature=2.0, top_p=0.65) == [0, 1, 2]
    assert kept(LOGS, temperature=2.0, min_p=0.5) == [0, 1, 2]
    assert kept(LOGS, temperature=0.5, top_p=0.65) == [0, 1]  # 0.16, 0.09, 0.04, … in all 0.2952
    assert kept(LOGS, temperature=2.0, top_k=2) == [0, 1]


def test_ties_at_the_threshold_are_all_kept():
    assert kept([1.0, 2.0, 2.0, 2.0, 0.0], top_k=2) == [1, 2, 3]
    assert kept([1.0, 2.0, 2.0, 2.0, 0.0], top_p=0.1) == [1, 2, 3]
    assert kept([0.0] * 6, min_p=1.0, top_k=1, top_p=0.01) == [0, 1, 2, 3, 4, 5]


def test_rows_that_ask_for_nothing_or_are_greedy_are_not_cut():
    assert kept(LOGS, min_p=0.0, top_k=0, top_p=1.0) == [0, 1, 2, 3, 4]
    assert kept(LOGS, temperature=0.0, min_p=0.9, top_k=1, top_p=0.1) == [0, 1, 2, 3, 4]
    assert kept(LOGS, top_k=9) == [0, 1, 2, 3, 4]


def test_the_likeliest_token_always_stays():
    assert kept(LOGS, min_p=1.0, top_p=1e-9) == [0]
    assert kept([-math.inf, -700.0, -math.inf], top_p=1e-9, min_p=1.0, top_k=1) == [1]


@pytest.mark.parametrize("spread", [0.0, 0.01, 1.0, 8.0])
@pytest.mark.parametrize("vocab_size", [3, 700, 6000])
def test_agrees_with_a_sort_in_float64(spread: float, vocab_size: int):
    logits, cuts = make_cuts(60, vocab_size, spread)
    assert disagreements(logits, truncation_threshold(logits, **cuts), cuts) == []


def test_a_threshold_that_is_a_token_off_is_noticed():
    logits, cuts = make_cuts(60, 700, 1.0)
    threshold = truncation_threshold(logits, **cuts)
    assert len(disagreements(logits, torch.nextafter(threshold, torch.tensor(torch.inf)), cuts)) > 50


def test_draws_are_those_of_guided_logits_with_the_same_cuts():
    logits, cuts = make_cuts(60, 700, 3.0)
    cuts["temperature"][::5] = 0
    keys = make_keys(60)
    assert torch.equal(truncate_and_draw(logits, **keys, **cuts), guided_logits(logits, **keys, **cuts).token)
    plain = {"temperature": cuts["temperature"]}
    assert torch.equal(
        truncate_and_draw(logits, **keys, **plain), guided_logits(logits, **keys, **plain).token
    )


def check_draws_follow_what_is_kept(top_p: float = 0.8, temperature: float = 1.5) -> None:
    """Chi-square of what top-k 40 and top-p 0.8 keep at temperature 1.5.

    top_p, temperature: what the draws are made with.
    """
    num_draws, vocab_size = 60_000, 64
    logits = 2 * torch.randn(vocab_size, generator=torch.Generator().manual_seed(5))
    ids = torch.arange(num_draws)
    token = truncate_and_draw(
        logits.expand(num_draws, -1),
        seeds=ids,
        positions=ids % 7,
        choices=ids % 2,
        temperature=torch.full((num_draws,), temperature),
        top_k=torch.full((num_draws,), 40),
        top_p=torch.full((num_draws,), top_p),
    )
    kept = by_sorting(logits, 1.5, 0.0, 40, 0.8)
    count = torch.bincount(token, minlength=vocab_size).double()
    assert count[~kept].sum() == 0
    expected = num_draws * (logits.double() / 1.5).masked_fill(~kept, -torch.inf).softmax(0)[kept]
    freedom = len(expected) - 1
    assert ((count[kept] - expected) ** 2 / expected).sum() < freedom + 10 * math.sqrt(2 * freedom)


def test_draws_follow_what_is_kept_and_nothing_else_is_drawn():
    check_draws_follow_what_is_kept()


@pytest.mark.parametrize("wrong", [{"top_p": 0.84}, {"top_p": 0.76}, {"temperature": 1.65}])
def test_a_nucleus_off_by_a_twentieth_and_a_temperature_off_by_a_tenth_are_noticed(wrong: dict[str, float]):
    with pytest.raises(AssertionError):
        check_draws_follow_what_is_kept(**wrong)


def test_a_row_draws_the_same_token_whoever_shares_its_batch():
    logits, cuts = make_cuts(128, 300, 2.0)
    arguments = make_keys(128) | cuts
    whole = truncate_and_draw(logits, **arguments)
    for size in (1, 2, 3, 7, 16, 17, 33, 64, 65):
        rows = torch.randperm(128, generator=torch.Generator().manual_seed(size))[:size]
        part = {name: values[rows] for name, values in arguments.items()}
        assert torch.equal(truncate_and_draw(logits[rows], **part), whole[rows])


def test_a_broken_row_draws_no_token_and_harms_no_other():
    logits, cuts = make_cuts(12, 200, 2.0)
    arguments = make_keys(12) | cuts
    whole = truncate_and_draw(logits, **arguments)
    logits[3, 7], logits[4], logits[5, 0] = torch.nan, -torch.inf, torch.inf
    token = truncate_and_draw(logits, **arguments)
    assert token[3:6].tolist() == [-1, -1, -1]
    good = torch.tensor([0, 1, 2, 6, 7, 8, 9, 10, 11])
    assert torch.equal(token[good], whole[good])


def test_broken_rows_do_not_disturb_the_others():
    logits = torch.randn(3, 100, generator=torch.Generator().manual_seed(0))
    settings = (torch.ones(3), torch.full((3,), 0.01), torch.full((3,), 30), torch.full((3,), 0.5))
    whole = truncation_threshold(logits, *settings)
    logits[0, 5], logits[2] = torch.nan, -torch.inf
    assert truncation_threshold(logits, *settings)[1] == whole[1]
