"""Best-of-n, win rates, curves at equal KL, overoptimisation and variety, by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from trimtab.guidance.evaluation.baselines.best_of_n import best_of_n, expected_best, expected_wins, kl_bound
from trimtab.guidance.evaluation.compare import at_equal_kl
from trimtab.guidance.evaluation.curve import Curve, Judging, judge_point, win_rates
from trimtab.guidance.evaluation.overoptimisation import find_overoptimisation, fit_bend
from trimtab.guidance.evaluation.replies import MeasuredReply
from trimtab.guidance.evaluation.variety import measure_variety, self_bleu
from trimtab.guidance.statistics import PerPrompt, resample_prompts

NUM_PROMPTS = 30
DRAWS = resample_prompts(NUM_PROMPTS, resamples=200)
JUDGING = Judging(NUM_PROMPTS, DRAWS, 2)


def reply(prompt: int, kl: float = 0.0, **overrides) -> MeasuredReply:
    settings = {"text": f"a reply {prompt}", "token_ids": (1, 2, 3), "finish_reason": "stop"} | overrides
    return MeasuredReply(prompt=prompt, kl=kl, **settings)


def curve(name: str, gains: dict[float, float], *, proxy: dict[float, float] | None = None) -> Curve:
    """KL is the knob squared; gold is the prompt's own level plus the gain."""
    points = []
    for knob, gain in gains.items():
        replies = [reply(p, knob**2) for p in range(NUM_PROMPTS)]
        scores = {"gold": [p / NUM_PROMPTS + gain for p in range(NUM_PROMPTS)]}
        if proxy is not None:
            scores["proxy"] = [proxy[knob]] * NUM_PROMPTS
        points.append(judge_point(replies, scores, knob, JUDGING))
    return Curve(name, "head", "strength", tuple(points), proxy="proxy" if proxy else None)


def test_best_of_n_averages_over_all_subsets():
    rng = np.random.default_rng(0)
    by, read = rng.normal(size=7), rng.normal(size=7)
    for n in range(1, 8):
        bests = [read[max(s, key=lambda i: by[i])] for s in itertools.combinations(range(7), n)]
        assert expected_best(by, read[:, None], (n,)).item() == pytest.approx(np.mean(bests))
    by_hand = np.array([1.0, 2, 4])
    assert expected_best(by_hand, by_hand[:, None], (2,)).item() == pytest.approx(10 / 3)


def test_replies_that_tie_share_their_places():
    assert expected_best(np.zeros(4), np.array([[0.0], [1], [2], [3]]), (4,)).item() == pytest.approx(1.5)


def test_wins_average_over_all_subsets_and_the_replies_outside_of_them():
    rng = np.random.default_rng(1)
    by, read = rng.normal(size=6), rng.normal(size=6).round(1)
    for n in range(1, 6):
        wins = []
        for chosen in itertools.combinations(range(6), n):
            best = read[max(chosen, key=lambda i: by[i])]
            wins += [(best > read[j]) + 0.5 * (best == read[j]) for j in range(6) if j not in chosen]
        assert expected_wins(by, read, n) == pytest.approx(np.mean(wins))


@pytest.mark.parametrize("n", [1, 2, 5])
def test_best_of_n_wins_n_in_n_plus_one_by_what_it_was_chosen_by(n: int):
    numbers = np.random.default_rng(2).normal(size=6)
    assert expected_wins(numbers, numbers, n) == pytest.approx(n / (n + 1))


def test_the_bound_by_hand():
    assert kl_bound(1) == 0
    assert kl_bound(4) == pytest.approx(math.log(4) - 0.75)


def test_best_of_n_leaves_out_prompts_with_too_few_scored_replies():
    replies = [reply(0), reply(0), reply(1), reply(1)]
    judging = Judging(2, resample_prompts(2, resamples=20))
    found = best_of_n(replies, {"gold": [1.0, 3.0, 5.0, None]}, "gold", [1, 2, 4], judging)
    assert [point.knob for point in found.points] == [1, 2]
    assert found.points[1].scores["gold"].estimate.mean == 3
    assert found.points[0].scores["gold"].estimate.mean == (2 + 5) / 2


def test_a_reply_is_compared_with_the_plain_one_of_its_own_random_numbers():
    places = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    replies = [reply(prompt, sample=sample) for prompt, sample in reversed(places)]
    plain = [reply(prompt, sample=sample) for prompt, sample in places[:-1]]
    rates = win_rates(replies, [9.0, 1.0, 1.0, 3.0, 2.0], plain, [2.0, 1.0, 1.0, None])
    assert rates[2:] == [0.5, 1.0, 0.5]
    assert all(math.isnan(rate) for rate in rates[:2])


def test_a_mean_over_resamples_of_prompts_keeps_each_prompts_replies_together():
    per_prompt = PerPrompt.of([0, 0, 1], [1.0, 3.0, math.nan], 2)
    assert per_prompt.mean == 2
    resampled = per_prompt.resampled(np.array([[0, 0], [0, 1], [1, 1]]))
    assert resampled[:2].tolist() == [2, 2]
    assert math.isnan(resampled[2])


def test_curves_are_compared_between_their_points_linearly_in_root_kl():
    base = curve("bias", {0: 0.0, 1: 1.0, 3: 3.0})
    better = curve("head", {0: 0.0, 2: 4.0})
    compared = at_equal_kl([base, better], ["gold"], [4, 16], JUDGING, baseline="bias")
    found = {(at.curve, at.kl): at for at in compared.found}
    assert set(found) == {("bias", 4), ("head", 4)}
    assert [(u.curve, u.kl, u.most) for u in compared.unreached] == [("bias", 16, 9), ("head", 16, 4)]
    level = np.mean(np.arange(NUM_PROMPTS) / NUM_PROMPTS)
    assert found["bias", 4].estimate.mean == pytest.approx(2 + level)
    assert found["bias", 4].knob == pytest.approx(2)
    above = found["head", 4].above_baseline
    assert (above.mean, above.low, above.high) == pytest.approx((2, 2, 2))


def test_the_difference_of_two_curves_is_surer_than_the_curves():
    base, better = curve("bias", {0: 0.0, 2: 1.0}), curve("head", {0: 0.0, 2: 1.5})
    _, head = at_equal_kl([base, better], ["gold"], [4], JUDGING, baseline="bias").found
    assert head.estimate.high - head.estimate.low > 0.1
    assert head.above_baseline.high - head.above_baseline.low < 1e-9


def test_gold_that_turns_down_while_the_proxy_rises_is_overoptimised():
    gains = {0: 0.0, 1: 1.0, 2: 1.5, 3: 0.5}
    rising = {0: 0.0, 1: 1.0, 2: 2.0, 3: 3.0}
    found = find_overoptimisation(curve("head", gains, proxy=rising), "gold", DRAWS)
    assert (found.turn.knob, found.turn.root_kl, found.turn.has_turned) == (2, 2, True)
    assert found.turn.drop.mean == pytest.approx(1)
    falling = {0: 0.0, 1: 1.0, 2: 2.0, 3: 1.0}
    assert not find_overoptimisation(curve("head", gains, proxy=falling), "gold", DRAWS).turn.has_turned


def test_gold_that_still_rises_has_no_turn_and_no_bend_that_the_data_carry():
    rising = {float(k): 2.0 * k for k in range(4)}
    found = find_overoptimisation(curve("head", rising, proxy=rising), "gold", DRAWS)
    assert found.turn is None
    assert found.fits[0].beta.mean == pytest.approx(0, abs=1e-9)
    assert not [fit for fit in found.fits if fit.is_carried and abs(fit.beta.mean) > 1e-6]


def test_two_points_carry_no_verdict():
    assert find_overoptimisation(curve("head", {0: 0.0, 1: 1.0}), "gold", DRAWS) is None


@pytest.mark.parametrize("form", ["d(a - bd)", "d(a - b log d)"])
def test_a_bend_is_found_again(form: str):
    d = np.array([0.5, 1.0, 2.0, 4.0])
    bend = d if form == "d(a - bd)" else np.log(d)
    alpha, beta = fit_bend(d, (d * (2 - 0.3 * bend))[None], form)
    assert (alpha[0], beta[0]) == pytest.approx((2, 0.3))


def test_a_point_by_hand():
    replies = [
        reply(0, 1.0, token_ids=(1, 2), logprob=-1.0, base_logprob=-2.0, flips=1),
        reply(1, 3.0, token_ids=(1, 2), logprob=-1.0, base_logprob=-2.0, finish_reason="length"),
    ]
    point = judge_point(replies, {"gold": [1.0, None]}, 2.0, Judging(2, resample_prompts(2, resamples=50)))
    assert (point.kl.mean, point.length, point.stopped, point.flip_rate) == (2, 2, 0.5, 0.25)
    assert point.perplexity == pytest.approx(math.e)
    assert point.entropy == pytest.approx(0.5)
    assert (point.scores["gold"].estimate.mean, point.scores["gold"].unscored) == (1, 0.5)


def test_what_was_not_measured_is_none():
    point = judge_point([reply(0), reply(1)], {}, 0.0, Judging(2, resample_prompts(2, resamples=5)))
    assert (point.perplexity, point.entropy, point.flip_rate) == (None, None, None)


def test_self_bleu_of_identical_replies_is_100_and_of_different_ones_low():
    same, other = "the little dog ran home again", "a big red bird sang on my roof"
    assert self_bleu([[same, same, same]]) == pytest.approx(100)
    assert self_bleu([[same, other]]) < 10
    assert self_bleu([[same], ["", same]]) is None


def test_self_bleu_is_capped_and_seeded():
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcdef"), 12)) for _ in range(60)]
    first = self_bleu([texts], max_comparisons=10, seed=1)
    assert first == self_bleu([texts], max_comparisons=10, seed=1)
    assert first != self_bleu([texts], max_comparisons=10, seed=2)


def test_variety_reads_as_many_replies_of_each_prompt_whatever_more_there_are():
    few = [reply(p, token_ids=(p, i), text=f"word {p} {i}") for p in range(3) for i in range(2)]
    more = [*few, *(reply(p, token_ids=(9, 9), text="word") for p in range(3) for _ in range(5))]
    assert measure_variety(few, per_prompt=2) == measure_variety(more, per_prompt=2)
    found = measure_variety(few, per_prompt=2)
    assert found.within.distinct_2 == 1
    assert found.across.distinct_1 == pytest.approx(3 / 6)
    assert measure_variety(few, per_prompt=1).within.self_bleu is None
