"""Both orders, principles and win rates, by hand-worked numbers."""

from __future__ import annotations

from collections import Counter

import pytest

from trimtab.guidance.data.rows import Rollout
from trimtab.guidance.text.encoding import Sampled
from trimtab.server.judging.client import FailureError
from trimtab.server.judging.compare import (
    Candidate,
    Candidates,
    Comparison,
    Outcome,
    Pair,
    Tally,
    both_orders,
    draw_comparisons,
    draw_pairs,
    from_rollouts,
    outcomes,
    preferences,
    win_rates,
)
from trimtab.server.judging.constitution import Constitution, Principle

KIND, BRIEF = Principle("Be kind.", 3.0), Principle("Be brief.", 1.0)
CONSTITUTION = Constitution("both", (KIND, BRIEF))
PAIR, OTHER = Pair(0, 0, 1), Pair(0, 0, 2)
GROUP = Candidates("p", (Candidate("one"), Candidate("two"), Candidate("three")))


def test_a_liking_for_a_position_cancels():
    """0.9 for A in both orders: the first reply gets (0.9 + 0.1) / 2."""
    biased = Outcome(Comparison(PAIR, 0), 0.9, 0.9)
    assert biased.preference == 0.5
    assert not biased.agrees


def test_a_preference_that_outlasts_the_swap_stays():
    """0.8 in its own order, 1 − 0.4 in the other: the mean is 0.7."""
    outcome = Outcome(Comparison(PAIR, 0), 0.8, 0.4)
    assert outcome.preference == pytest.approx(0.7)
    assert outcome.agrees


def test_undecided_in_one_order_is_no_agreement():
    assert not Outcome(Comparison(PAIR, 0), 0.5, 0.0).agrees


def test_principles_count_by_their_weights_and_disagreement_is_dropped_or_a_tie():
    """Kind (weight 3) prefers the first by 1, brief (weight 1) disagrees with itself: 1 alone when dropped,
    (3·1 + 1·½) / 4 = 0.875 as a tie."""
    judged = [Outcome(Comparison(PAIR, 0), 1.0, 0.0), Outcome(Comparison(PAIR, 1), 1.0, 1.0)]
    assert preferences(judged, CONSTITUTION, "drop") == {PAIR: 1.0}
    assert preferences(judged, CONSTITUTION, "tie") == {PAIR: 0.875}
    assert preferences(judged[1:], CONSTITUTION, "drop") == {}


def test_win_rates_are_means_over_a_reply_s_pairs():
    rates = win_rates({PAIR: 1.0, OTHER: 0.5, Pair(0, 1, 2): 0.25})
    assert rates == {(0, 0): 0.75, (0, 1): 0.125, (0, 2): 0.625}


def test_a_comparison_with_one_unanswered_order_is_not_judged():
    comparisons = [Comparison(PAIR, 0), Comparison(OTHER, 0)]
    judged = outcomes(comparisons, [1.0, FailureError("garbage"), 0.0, 1.0])
    assert judged == [Outcome(comparisons[1], 0.0, 1.0)]


def test_each_comparison_is_asked_in_its_own_order_and_then_in_the_other():
    comparisons = [Comparison(PAIR, 0)]
    own, swapped = both_orders(comparisons, [GROUP], CONSTITUTION, wants_logprobs=True)
    assert own.text.index("A]\none\n") < own.text.index("B]\ntwo\n")
    assert swapped.text.index("A]\ntwo\n") < swapped.text.index("B]\none\n")
    assert "Be kind." in own.text
    assert "three" not in own.text


def test_principles_are_drawn_by_weight_and_a_pair_s_does_not_depend_on_the_others():
    pairs = [Pair(group, 0, 1) for group in range(2000)]
    drawn = draw_comparisons(pairs, CONSTITUTION, "draw", seed=0)
    counts = Counter(comparison.principle for comparison in drawn)
    assert counts[0] / 2000 == pytest.approx(0.75, abs=0.04)
    assert draw_comparisons(pairs[50:], CONSTITUTION, "draw", seed=0) == drawn[50:]
    assert draw_comparisons(pairs, CONSTITUTION, "draw", seed=1) != drawn
    assert len(draw_comparisons(pairs[:3], CONSTITUTION, "all", seed=0)) == 6


def test_pairs_are_all_or_as_many_as_asked():
    assert draw_pairs([GROUP], None, 0) == [PAIR, OTHER, Pair(0, 1, 2)]
    drawn = draw_pairs([GROUP, GROUP], 2, 0)
    assert Counter(pair.group for pair in drawn) == {0: 2, 1: 2}
    assert len(set(drawn)) == 4


def test_candidates_are_different_replies_to_one_prompt():
    rows = [Rollout(p, text) for p, text in [("p", "a"), ("q", "x"), ("p", "b"), ("p", "a"), ("q", " ")]]
    rows.append(Rollout("p", "c", Sampled((1, 2), is_cut=True)))
    (group,) = from_rollouts(rows)
    assert group == Candidates("p", (Candidate("a"), Candidate("b"), Candidate("c", Sampled((1, 2), True))))


def test_the_tally_shows_the_liking_for_the_first_position():
    """First shown: (1 + 1)/2 and (0.8 + 0.4)/2; their mean is 0.8."""
    judged = [Outcome(Comparison(PAIR, 0), 1.0, 1.0), Outcome(Comparison(OTHER, 0), 0.8, 0.4)]
    assert Tally.of(judged) == Tally(2, 1, 0.5, pytest.approx(0.8))
    assert Tally.of([]) == Tally(0, 0, None, None)
