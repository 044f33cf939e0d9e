"""Curves at equal KL, groups of training seeds and intervals that hold at once, by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from trimtab.guidance.evaluation.baselines.best_of_n import best_of_n, kl_bound
from trimtab.guidance.evaluation.baselines.static_bias import (
    BiasSetting,
    BiasTrial,
    bias_settings,
    rank_trials,
)
from trimtab.guidance.evaluation.compare import at_equal_kl
from trimtab.guidance.evaluation.comparison_tables import equal_price_tables
from trimtab.guidance.evaluation.curve import Curve, Judging, judge_point
from trimtab.guidance.evaluation.plots import plot_scores
from trimtab.guidance.evaluation.replies import MeasuredReply
from trimtab.guidance.evaluation.report import FrontierReport
from trimtab.guidance.evaluation.seed_group import group_seeds
from trimtab.guidance.evaluation.table import show_difference
from trimtab.guidance.evaluation.tables import frontier_tables
from trimtab.guidance.plot_style import LIGHT
from trimtab.guidance.statistics import (
    Estimate,
    interval,
    resample_prompts,
    resample_seeds,
    simultaneous,
)

NUM_PROMPTS = 20
JUDGING = Judging(NUM_PROMPTS, resample_prompts(NUM_PROMPTS, resamples=2000), 1)


def reply(prompt: int, kl: float = 0.0, num_tokens: int = 10, sample: int = 0) -> MeasuredReply:
    return MeasuredReply(prompt, f"reply {prompt}", tuple(range(num_tokens)), kl, "stop", sample=sample)


def curve(name: str, golds: dict[float, float], *, num_tokens: int = 10, noise: float = 0.0) -> Curve:
    """KL is the knob squared; gold is the same for every prompt, but for the prompt's own noise."""
    own = noise * np.random.default_rng(len(name)).normal(size=NUM_PROMPTS)
    points = tuple(
        judge_point(
            [reply(p, knob**2, num_tokens) for p in range(NUM_PROMPTS)],
            {"gold": [gold + knob * x for x in own]},
            knob,
            JUDGING,
        )
        for knob, gold in golds.items()
    )
    return Curve(name, "head", "strength", points)


def best_of_three() -> Curve:
    """Every prompt has plain replies that score 1, 2 and 4, of 10, 20 and 30 tokens."""
    replies = [reply(p, num_tokens=10 * (i + 1), sample=i) for p in range(NUM_PROMPTS) for i in range(3)]
    return best_of_n(replies, {"gold": [1.0, 2.0, 4.0] * NUM_PROMPTS}, "gold", [1, 3], JUDGING)


def test_best_of_n_at_its_kl_by_hand():
    """Best of 2 at ≤ log 2 − ½: subsets' bests are 2, 4, 4; the reply kept has 20, 30, 30 tokens."""
    two = kl_bound(2)
    halfway = ((two**0.5 + kl_bound(3) ** 0.5) / 2) ** 2
    found = at_equal_kl([best_of_three()], ["gold"], [two, halfway], JUDGING).found
    assert found[0].estimate.mean == pytest.approx(10 / 3)
    assert (found[0].knob, found[0].aside.num_sampled) == pytest.approx((2, 2))
    assert found[0].aside.length == pytest.approx(80 / 3)
    assert found[0].aside.kl_per_token == pytest.approx(two * 3 / 80)
    assert found[1].estimate.mean == pytest.approx((10 / 3 + 4) / 2)
    assert found[1].aside.num_sampled == pytest.approx(2.5)


def test_best_of_n_shows_the_points_that_were_asked_for_and_is_read_at_every_n():
    best = best_of_three()
    assert [point.knob for point in best.points] == [1, 3]
    assert [point.knob for point in best.between] == [1, 2, 3]


def test_a_head_says_how_far_it_is_from_best_of_n_at_its_own_kl():
    kl = kl_bound(2)
    head = curve("head", {0.0: 7 / 3, 1.0: 7 / 3 + 1})  # linear in √KL: 7/3 + √KL
    compared = at_equal_kl([head, best_of_three()], ["gold"], [kl], JUDGING)
    mine, best = compared.found
    assert mine.above_best_of_n.mean == pytest.approx(7 / 3 + kl**0.5 - 10 / 3)
    assert (mine.aside.num_sampled, best.above_best_of_n) == (1, None)
    assert compared.num_comparisons == 1


def test_what_replies_are_like_is_read_between_points_as_the_score_is():
    short, long = curve("a", {0.0: 0.0}, num_tokens=10), curve("a", {2.0: 4.0}, num_tokens=30)
    both = Curve("a", "head", "strength", (*short.points, *long.points))
    [found] = at_equal_kl([both], ["gold"], [1.0], JUDGING).found
    assert (found.estimate.mean, found.aside.length) == pytest.approx((2, 20))
    assert found.aside.kl_per_token == pytest.approx(1 / 20)
    assert (found.aside.stopped, found.aside.perplexity) == (1, None)


def test_a_curve_that_falls_short_is_named_with_what_it_reaches():
    far, near = curve("far", {0.0: 0.0, 3.0: 3.0}), curve("near", {0.0: 0.0, 1.5: 3.0})
    unsampled = Curve("elsewhere", "external", "scale", ())
    compared = at_equal_kl([far, near, unsampled], ["gold"], [1.0, 4.0], JUDGING, baseline="far")
    assert {(at.curve, at.kl) for at in compared.found} == {("far", 1), ("far", 4), ("near", 1)}
    frontier = FrontierReport(
        NUM_PROMPTS,
        ("gold",),
        (far, near),
        at_kl=compared.found,
        unreached=compared.unreached,
        num_comparisons=compared.num_comparisons,
    )
    table = equal_price_tables(frontier)[0]
    cells = {(row[0], row[1]): row[4] for row in table.rows}
    assert cells["4", "near"] == "does not reach 4 nats (most: 2.25)"
    assert cells["1", "elsewhere"] == "no replies to these prompts"
    assert "Not reached: near at 4 nats; elsewhere at 1, 4 nats." in table.note
    assert "hold for all 1 at once" in table.note


def test_a_system_prompt_is_read_at_its_own_price_alone_and_against_what_others_score_there():
    """Gold of the head is √KL; the prompt has 3 at 4 nats, where the head has 2. Resample by resample too."""
    head = curve("head", {0.0: 0.0, 1.0: 1.0, 3.0: 3.0})
    asked = replace(curve("asked", {2.0: 3.0}), kind="system_prompt")
    compared = at_equal_kl([head, asked], ["gold"], [1.0], JUDGING)
    assert {(at.curve, at.kl) for at in compared.found} == {("head", 1), ("head", 4), ("asked", 4)}
    assert compared.unreached == ()
    own = next(at for at in compared.found if (at.curve, at.kl) == ("head", 4))
    assert own.estimate.mean == pytest.approx(2)
    told = own.above_system_prompt
    assert (told.mean, told.low, told.high) == pytest.approx((-1, -1, -1))
    assert compared.num_comparisons == 1
    frontier = FrontierReport(NUM_PROMPTS, ("gold",), (head, asked), at_kl=compared.found, num_comparisons=1)
    table = equal_price_tables(frontier)[0]
    place = table.columns.index("from asked")
    assert [row[place] for row in table.rows] == ["-", "-", "-1.00 [-1.00, -1.00] below"]


def test_one_table_holds_every_measure_of_a_strength_and_every_named_score():
    """Perplexity e of the plain policy and e² at strength 2: twice e times as much."""
    points = tuple(
        judge_point(
            [replace(reply(p, knob), base_logprob=-10 * (1 + knob / 2)) for p in range(NUM_PROMPTS)],
            {"gold": [knob] * NUM_PROMPTS, "grade": [8 - knob] * NUM_PROMPTS},
            knob,
            JUDGING,
        )
        for knob in (0.0, 2.0)
    )
    frontier = FrontierReport(NUM_PROMPTS, ("gold", "grade"), (Curve("head", "head", "strength", points),))
    table = next(table for table in frontier_tables(frontier) if table.name == "glance")
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [(row["knob"], row["gold"], row["grade"]) for row in rows] == [
        ("strength 0", "0.00", "8.00"),
        ("strength 2", "2.00", "6.00"),
    ]
    assert [row["perplexity"] for row in rows] == ["2.72 (1.00)", "7.39 (2.72)"]
    assert [(row["stopped"], row["words"], row["KL per reply"]) for row in rows] == [
        ("100%", "2.0", "0.00"),
        ("100%", "2.0", "2.00"),
    ]


def test_seeds_count_so_that_their_mean_varies_as_that_of_new_seeds_would():
    weights = resample_seeds(2, resamples=4000)
    assert np.allclose(weights.sum(1), 1)
    assert set(np.round(weights[:, 0], 4)) == {0.5, round(0.5 + 0.5**0.5, 4), round(0.5 - 0.5**0.5, 4)}
    numbers = np.array([1.0, 2.0, 6.0])
    means = resample_seeds(3, resamples=40_000) @ numbers
    assert means.mean() == pytest.approx(3, abs=0.02)
    assert means.var() == pytest.approx(numbers.var(ddof=1) / 3, rel=0.03)
    assert (resample_seeds(1, resamples=3) == 1).all()


def test_a_group_is_the_mean_of_its_seeds_and_its_interval_is_over_them():
    """Seeds that score 1, 2 and 3 whatever the prompt: a draw of one seed alone comes once in 27 (3.7 %), so
    the interval's ends are 2 ∓ √(3/2)."""
    members = [curve(f"seed {i}", {0.0: 0.0, 1.0: i}) for i in (1.0, 2.0, 3.0)]
    group = group_seeds("all", members, JUDGING)
    estimate = group.points[1].scores["gold"].estimate
    expected = (2, 2 - 1.5**0.5, 2 + 1.5**0.5)
    assert (estimate.mean, estimate.low, estimate.high) == pytest.approx(expected)
    assert (group.points[1].kl.mean, group.points[1].num_replies) == (1, 3 * NUM_PROMPTS)
    [at] = at_equal_kl([group], ["gold"], [1.0], JUDGING).found
    assert (at.estimate.mean, at.estimate.low, at.estimate.high) == pytest.approx(expected)
    assert at.by_seed == pytest.approx((1, 2, 3))
    alone = at_equal_kl([members[0]], ["gold"], [1.0], JUDGING).found[0].estimate
    assert (alone.low, alone.high) == pytest.approx((1, 1))


def test_a_plot_shows_the_seeds_of_a_group_lightly_and_best_of_n_beside_it():
    members = [curve(f"seed {i}", {0.0: 0.0, 1.0: i}) for i in (1.0, 2.0, 3.0)]
    group = group_seeds("mine", members, JUDGING)
    frontier = FrontierReport(NUM_PROMPTS, ("gold",), (group, best_of_three()))
    figure = plot_scores(frontier, LIGHT)
    light = [line for line in figure.axes[0].lines if line.get_alpha() is not None]
    assert [line.get_ydata()[-1] for line in light] == [1, 2, 3]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["mine (3 seeds)", "best-of-n by gold (at KL ≤)"]


@pytest.mark.parametrize("length", [3, 20, 30, 45, 60])
def test_no_legend_is_wider_than_its_picture(length: int):
    curves = tuple(curve(f"{i} " + "n" * (length - 2), {0.0: 0.0, 1.0: 1.0}) for i in range(9))
    figure = plot_scores(FrontierReport(NUM_PROMPTS, ("gold",), curves), LIGHT)
    figure.draw_without_rendering()
    extent = figure.legends[0].get_window_extent()
    assert extent.x0 >= 0
    assert extent.x1 <= figure.bbox.x1


def test_no_other_curve_has_the_colour_of_best_of_n():
    curves = tuple(curve(str(i), {0.0: 0.0, 1.0: 1.0}) for i in range(10))
    figure = plot_scores(FrontierReport(NUM_PROMPTS, ("gold",), (*curves, best_of_three())), LIGHT)
    *others, best = [bars.lines[0].get_color() for bars in figure.axes[0].containers]
    assert best == LIGHT.text
    assert len(set(others)) == 10
    assert LIGHT.text not in others


def test_two_groups_are_resampled_apart():
    """Seeds of two groups that score alike one by one, but have nothing in common beyond that."""
    groups = []
    for name in ("first", "second"):
        members = [curve(f"{name} {i}", {0.0: 0.0, 1.0: i}) for i in (1.0, 2.0, 3.0)]
        groups.append(group_seeds(name, members, JUDGING))
    _, second = at_equal_kl(groups, ["gold"], [1.0], JUDGING, baseline="first").found
    assert second.above_baseline_alone.mean == pytest.approx(0)
    assert second.above_baseline_alone.high > 1


def test_seeds_that_agree_leave_the_interval_over_prompts():
    member = curve("one", {0.0: 0.0, 1.0: 1.0}, noise=1.0)
    [alone] = at_equal_kl([member], ["gold"], [1.0], JUDGING).found
    [group] = at_equal_kl([group_seeds("all", [member] * 3, JUDGING)], ["gold"], [1.0], JUDGING).found
    assert (group.estimate.low, group.estimate.high) == pytest.approx(
        (alone.estimate.low, alone.estimate.high)
    )


def test_seeds_at_different_prices_are_compared_at_the_same_one():
    """One seed gains 1 per √KL and spends 1 nat, the other 3 and 4 nats: at 1 nat they have 1 and 3."""
    cheap, dear = curve("a", {0.0: 0.0, 1.0: 1.0}), curve("b", {0.0: 0.0, 2.0: 6.0})
    group = group_seeds("both", [cheap, dear], JUDGING)
    assert group.points[1].scores["gold"].estimate.mean == 3.5
    compared = at_equal_kl([group], ["gold"], [1.0, 2.0], JUDGING)
    assert compared.found[0].estimate.mean == pytest.approx(2)
    [missed] = compared.unreached
    assert (missed.kl, missed.most) == (2, 1)


def test_an_interval_for_one_number_by_hand():
    moved = np.array([[-2.0, -1.0, 0.0, 1.0, 2.0]]) + 5
    [found] = simultaneous(np.array([5.0]), moved)
    assert (found.mean, found.low, found.high) == pytest.approx((5, 3, 7))


def test_intervals_that_hold_at_once_are_wider_than_one_alone_and_more_so_for_more():
    rng = np.random.default_rng(0)
    moved = rng.normal(size=(20, 4000))
    alone = [interval(0.0, row) for row in moved]
    few, many = simultaneous(np.zeros(2), moved[:2]), simultaneous(np.zeros(20), moved)
    assert all(a.high < f.high < m.high for a, f, m in zip(alone, few, many, strict=False))
    sidak = 3.016  # Φ⁻¹(1 − (1 − 0.95^(1/20))/2)
    assert np.mean([m.high for m in many]) == pytest.approx(sidak, abs=0.1)
    same = simultaneous(np.zeros(20), np.repeat(moved[:1], 20, 0))
    assert same[0].high == pytest.approx(simultaneous(np.zeros(1), moved[:1])[0].high)


def test_intervals_hold_for_all_numbers_at_once_about_95_times_in_100():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(300):
        data = rng.normal(size=(10, 60))
        draws = rng.integers(60, size=(300, 60))
        found = simultaneous(data.mean(1), data[:, draws].mean(2))
        hits += all(e.low <= 0 <= e.high for e in found)
    assert 270 <= hits <= 297


def test_above_is_said_only_where_the_interval_for_all_comparisons_leaves_out_zero():
    assert show_difference(Estimate(1.0, 0.1, 1.9)) == "+1.00 [+0.10, +1.90] above"
    assert show_difference(Estimate(-1.0, -1.9, -0.1)) == "-1.00 [-1.90, -0.10] below"
    assert show_difference(Estimate(1.0, -0.1, 2.1)) == "+1.00 [-0.10, +2.10]"
    assert show_difference(None) == "-"


def test_a_difference_is_shown_with_the_corrected_interval_and_kept_with_its_own():
    base = curve("base", {0.0: 0.0, 3.0: 3.0}, noise=0.5)
    heads = [curve("head" + "x" * i, {0.0: 0.0, 3.0: 3.3}, noise=0.5) for i in range(8)]
    compared = at_equal_kl([base, *heads], ["gold"], [1.0, 4.0], JUDGING, baseline="base")
    assert compared.num_comparisons == 16
    both = at_equal_kl([heads[0], best_of_three()], ["gold"], [0.1], JUDGING, baseline="head")
    assert both.found[0].above_best_of_n is not None
    assert both.found[1].above_baseline is not None
    assert both.num_comparisons == 1  # the same two, seen from either side
    for at in compared.found:
        if at.curve != "base":
            assert at.above_baseline.mean == at.above_baseline_alone.mean
            assert at.above_baseline.low < at.above_baseline_alone.low
            assert at.above_baseline_alone.high < at.above_baseline.high


def test_the_setting_that_reaches_most_prices_best_is_chosen():
    def trial(discount: float, *scores: float | None, slope: float = 0.0) -> BiasTrial:
        return BiasTrial(BiasSetting(discount, 20, None), 5, 1.0, slope, scores)

    trials = [trial(0.1, 2.0, 4.5), trial(0.2, 3.0, 4.0), trial(0.3, 9.0, None), trial(0.4, slope=9.0)]
    found = rank_trials(trials)
    assert [(t.setting.discount, t.is_chosen) for t in found] == [
        (0.2, True),
        (0.1, False),
        (0.3, False),
        (0.4, False),
    ]


def test_settings_are_all_combinations_each_once():
    settings = list(bias_settings((0.5, 0.5, 1.0), (20.0,), (16, "all")))
    assert settings == [
        BiasSetting(0.5, 20.0, 16),
        BiasSetting(0.5, 20.0, None),
        BiasSetting(1.0, 20.0, 16),
        BiasSetting(1.0, 20.0, None),
    ]


def test_the_bound_grows_with_every_n():
    bounds = [kl_bound(n) for n in range(1, 65)]
    assert bounds == sorted(bounds)
    assert bounds[-1] == pytest.approx(math.log(64) - 63 / 64)
