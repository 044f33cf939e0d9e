from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from trimtab.guidance.data.items import LabelItem, PairItem, RolloutItem
from trimtab.guidance.heads.verdict import metrics_in, verdicts
from trimtab.guidance.text.encoding import EncodedReply
from trimtab.guidance.training.figures import (
    MIN_TO_SPLIT,
    MIN_TO_STOP,
    choose_validation,
    correlation_figures,
    label_figures,
    pair_figures,
    score_figures,
)
from trimtab.guidance.training.learning_curve import PICTURE_FILE, draw_learning_curves
from trimtab.guidance.training.log import TrainingLog


def reply(prompt: int, number: int = 0) -> EncodedReply:
    return EncodedReply((prompt,), (number,))


def pairs(num: int) -> list[PairItem]:
    return [PairItem(reply(i, 1), reply(i, 2)) for i in range(num)]


def of_pairs(margins: list[float], lengths: list[float]) -> Any:
    """The verdict on a reward that scores pairs by these margins, with these differences of length."""
    nothing = torch.zeros(len(margins))
    sides = ((torch.tensor(x), nothing) for x in (margins, lengths))
    return verdicts(pair_figures("reward", *sides, pairs(len(margins))))["reward"]


def test_one_pair_is_no_accuracy():
    for margin in (1.0, -1.0):
        found = of_pairs([margin], [1.0])
        assert str(found) == "too few to tell (1 pair)"
        assert found.has_learned is None
    figures = pair_figures(
        "reward", (torch.ones(9), torch.zeros(9)), (torch.ones(9), torch.zeros(9)), pairs(9)
    )
    assert figures == {"reward_pairs": 9}


@pytest.mark.parametrize(
    ("right", "longer", "words", "has_learned"),
    [
        (36, 36, "no better than chance on 72 pairs", False),
        (41, 41, "no better than chance on 72 pairs", False),
        (12, 36, "worse than chance on 72 pairs", False),
        (60, 61, "better than chance, no better than length, on 72 pairs", True),
        (60, 30, "better than chance and than length on 72 pairs", True),
    ],
)
def test_an_accuracy_is_told_beside_chance_and_length(right: int, longer: int, words: str, has_learned: bool):
    margins = [1.0] * right + [-1.0] * (72 - right)
    lengths = [1.0 if i % 2 == 0 else -1.0 for i in range(72)] if longer == 36 else []
    lengths = lengths or [1.0] * longer + [-1.0] * (72 - longer)
    found = of_pairs(margins, lengths)
    assert found.words == words
    assert found.has_learned is has_learned
    assert f"accuracy {right / 72:.1%}" in found.figures
    assert "length alone" in found.figures


def test_labels_are_told_by_how_often_good_lies_above_bad():
    items = [LabelItem(reply(i), i < 10) for i in range(20)]
    figures = label_figures("advantage", torch.arange(20.0).flip(0), items)
    assert figures["label_advantage_accuracy"] == 1
    assert verdicts(figures)["advantage"].words == "better than chance on 20 labelled replies"
    few = label_figures("advantage", torch.arange(20.0), [LabelItem(reply(i), i < 1) for i in range(20)])
    assert verdicts(few)["advantage"].words == "too few to tell (20 labelled replies)"


def test_a_correlation_of_noise_is_no_better_than_chance_and_one_of_sense_is():
    generator = torch.Generator().manual_seed(1)
    returns = torch.randn(50, 4, generator=generator)
    items = [RolloutItem(reply(i), reward=0.0) for i in range(50)]
    for scores, words in (
        (torch.randn(50, 4, generator=generator), "no better than chance on 50 replies"),
        (returns + torch.randn(50, 4, generator=generator), "better than chance on 50 replies"),
    ):
        figures = correlation_figures("advantage", list(scores), list(returns), items)
        assert verdicts(figures)["advantage"].words == words
    few = correlation_figures("advantage", list(returns[:3]), list(returns[:3]), items[:3])
    assert verdicts(few)["advantage"].words == "too few to tell (3 replies)"


def test_scores_are_compared_prompt_by_prompt():
    """Prompts differ by 100, the head gains 1 or 2 on each: the difference is sure, the means are not."""
    plain = [RolloutItem(reply(i), reward=100.0 * i) for i in range(12)]
    steered = [RolloutItem(reply(i), reward=100.0 * i + 1 + i % 2) for i in range(12)]
    figures = score_figures(steered, plain)
    assert figures["score_gain"] == pytest.approx(1.5)
    assert figures["score_gain_low"] > 1
    assert figures["score_low"] < figures["base_score"] < figures["score_high"]
    assert verdicts(figures)["advantage"].words == "better than the plain policy on 12 prompts"
    assert verdicts(score_figures(plain, plain))["advantage"].words.startswith("no better than the plain")


def test_a_loss_is_told_beside_that_of_knowing_nothing():
    figures = {"value_judged": 40, "value_loss": 1.0, "value_loss_of_nothing": 1.5}
    figures |= {"value_gain": 0.5, "value_gain_low": 0.1, "value_gain_high": 0.9}
    found = verdicts(figures | {"value_validation_is_shared": 1.0})["value"]
    assert str(found) == (
        "better than knowing nothing on 40 rows (held-out loss 1, knowing nothing 1.5; the same rows chose "
        "its epoch)"
    )
    assert verdicts(figures | {"value_gain_low": -0.1})["value"].has_learned is False
    assert verdicts(figures | {"value_judged": 3})["value"].has_learned is None
    assert metrics_in(figures) == figures.keys()


def test_older_manifests_have_no_verdict():
    assert verdicts({"reward_accuracy": 1.0, "held_out_pairs": 1}) == {}


def test_patience_counts_epochs_since_the_lowest_loss():
    def log(*losses: float) -> TrainingLog:
        return TrainingLog(held_out=tuple(enumerate(losses)))

    assert log(3, 1, 2, 2).has_stopped(2)
    assert not log(3, 1, 2).has_stopped(2)
    assert not log(3, 2, 1, 0).has_stopped(1)
    assert not log(1, 2, 3, 4).has_stopped(0)
    assert log(1, 1).has_stopped(1)
    assert log(3, 1, 2, 1).best_step == 1
    assert TrainingLog().best_step is None


def test_rows_that_stop_training_judge_it_only_where_there_are_few():
    for num in (MIN_TO_SPLIT - 1, MIN_TO_SPLIT):
        items = pairs(num) * 2
        found = choose_validation(items, 0)
        stopping, judging = found.stopping(items), found.judging(items)
        assert found.is_shared == (num < MIN_TO_SPLIT)
        if found.is_shared:
            assert stopping == judging == items
        else:
            assert len(stopping) == len(judging) == num
            assert not {p.chosen.prompt_ids for p in stopping} & {p.chosen.prompt_ids for p in judging}
    few = pairs(MIN_TO_STOP - 1)
    assert choose_validation(few, 0).stopping(few) == []
    assert choose_validation(few, 0).judging(few) == few


def test_no_log_is_no_picture(tmp_path: Path):
    assert draw_learning_curves(tmp_path) is None
    assert not (tmp_path / PICTURE_FILE).exists()
