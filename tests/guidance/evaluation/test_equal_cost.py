"""Curves at equal cost, by hand."""

from __future__ import annotations

import math

import pytest

from trimtab.guidance.evaluation.baselines.best_of_n import best_of_n
from trimtab.guidance.evaluation.curve import Curve, Judging, judge_point
from trimtab.guidance.evaluation.equal_cost import at_equal_cost
from trimtab.guidance.evaluation.replies import MeasuredReply
from trimtab.guidance.statistics import resample_prompts

JUDGING = Judging(4, resample_prompts(4))


def replies(num: int, num_run: int = 2, kl: float = 0.0) -> list[MeasuredReply]:
    """Of two tokens each, num to each of four prompts."""
    return [
        MeasuredReply(
            p, "a b", (1, 2), kl, "stop", logprob=-1.0, base_logprob=-1.5, sample=i, num_run=num_run
        )
        for p in range(4)
        for i in range(num)
    ]


def steered(score: float, num_run: int) -> Curve:
    point = judge_point(replies(1, num_run, kl=1.0), {"gold": [score] * 4}, 1.0, JUDGING)
    return Curve("rule", "head", "strength", (point,))


def test_a_point_stands_beside_best_of_n_between_two_n():
    """Best of 1 is 1 at cost 1, of 2 is 4/3 at cost 2, of 3 is 3/2; read at 2.5, halfway."""
    plain = best_of_n(replies(4), {"gold": [0.0, 1.0, 1.0, 2.0] * 4}, "gold", (1, 2, 3), JUDGING)
    costs = [point.cost for point in plain.between]
    golds = [estimate.mean for p in plain.between if (estimate := p.scores["gold"].estimate)]
    assert costs == pytest.approx([1, 2, 3])
    [row] = at_equal_cost([steered(3.0, 5), plain], ["gold"], JUDGING)
    assert (row.cost, row.estimate.mean) == (2.5, 3.0)
    assert row.above["gold"].mean == pytest.approx(3 - (golds[1] + golds[2]) / 2)


def test_what_costs_no_more_than_plain_or_more_than_was_sampled_is_not_compared():
    plain = best_of_n(replies(3), {"gold": [0.0, 1.0, 2.0] * 4}, "gold", (1, 2, 3), JUDGING)
    assert at_equal_cost([steered(3.0, 2), plain], ["gold"], JUDGING) == ()
    [row] = at_equal_cost([steered(3.0, 16), plain], ["gold"], JUDGING)
    assert row.above == {}


def test_steered_replies_that_are_chosen_among_are_as_far_as_both_together():
    """Each was half a nat likelier than under the policy, whichever is chosen."""
    found = best_of_n(replies(4, kl=0.7), {"gold": [0.0, 1.0, 1.0, 2.0] * 4}, "gold", (1, 4), JUDGING)
    first, fourth = found.points
    assert first.kl.mean == pytest.approx(0.5)
    assert fourth.kl.mean == pytest.approx(math.log(4) - 0.75 + 0.5)
