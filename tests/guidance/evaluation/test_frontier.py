from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from trimtab.guidance.evaluation.frontier import frontier
from trimtab.guidance.evaluation.plot import plot_frontier
from trimtab.guidance.evaluation.reply import Heads, Reply
from trimtab.guidance.evaluation.report import FrontierReport

PROMPTS = [f"prompt {i}" for i in range(10)]
HEADS: Heads = (("kind", 1.0),)


def sample(prompts: Sequence[str], heads: Heads, strength: float) -> list[Reply]:
    """Two replies a prompt; the second never stops by itself."""
    assert heads == HEADS
    return [
        Reply(prompt, f"{strength:g} reply {i}", (i, i, 7), kl=strength**2, finish_reason=reason)
        for prompt in prompts
        for i, reason in enumerate(("stop", "length"))
    ]


def score(prompt: str, reply: str) -> dict[str, float | None]:
    """Kindness is the strength; concision cannot be judged at -1; harmlessness for one reply in two."""
    strength = float(reply.split(maxsplit=1)[0])
    harmless = 1.0 if reply.endswith("0") else None
    return {"kindness": strength, "concision": None if strength == -1 else 0.5, "harmlessness": harmless}


@pytest.fixture(scope="module")
def report() -> FrontierReport:
    return frontier(sample, score, PROMPTS, heads=HEADS, strengths=(-1, 0, 2), show_progress=False)


def test_every_strength_is_sampled_and_judged(report: FrontierReport):
    assert [point.strength for point in report.points] == [-1, 0, 2]
    assert [point.scores["kindness"].estimate.mean for point in report.points] == [-1, 0, 2]
    assert [point.kl.mean for point in report.points] == [1, 0, 4]
    assert {point.num_replies for point in report.points} == {20}
    assert report.num_prompts == 10


def test_replies_that_the_judge_cannot_score_are_counted_and_left_out(report: FrontierReport):
    first = report.points[0]
    assert first.scores["concision"].estimate is None
    assert first.scores["concision"].unparsable == 1
    assert first.scores["harmlessness"].unparsable == 0.5
    assert first.scores["harmlessness"].estimate.mean == 1
    assert first.scores["kindness"].unparsable == 0


def test_length_endings_and_variety_are_measured(report: FrontierReport):
    point = report.points[0]
    assert (point.length, point.stopped) == (3, 0.5)
    assert point.distinct_1 == 3 / 60
    assert point.distinct_2 == 4 / 40


def test_examples_show_one_prompt_at_every_strength(report: FrontierReport):
    assert len(report.examples) == 4
    for example in report.examples:
        assert example.prompt in PROMPTS
        assert example.replies == ("-1 reply 0", "0 reply 0", "2 reply 0")


def test_a_prompt_given_twice_counts_once_and_the_seed_fixes_the_rest(report: FrontierReport):
    assert (
        frontier(sample, score, PROMPTS * 2, heads=HEADS, strengths=(-1, 0, 2), show_progress=False) == report
    )


def test_the_report_is_json_and_a_table_with_a_row_per_strength(report: FrontierReport):
    data = json.loads(report.to_json())
    assert data["points"][2]["scores"]["kindness"]["estimate"]["mean"] == 2
    lines = report.to_markdown().splitlines()
    assert len(lines) == 5
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| -1 | -1.00 [-1.00, -1.00] | none |")
    assert lines[3].startswith("| 0 |")
    assert lines[4].startswith("| +2 |")


def test_the_plot_is_a_png_with_something_drawn(report: FrontierReport, tmp_path: Path):
    plot_frontier(report, tmp_path / "frontier.png")
    content = (tmp_path / "frontier.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 20_000


def test_a_prompt_without_a_reply_is_named():
    def silent(prompts: Sequence[str], heads: Heads, strength: float) -> list[Reply]:
        return sample(prompts[1:], heads, strength)

    with pytest.raises(ValueError, match="no reply to 'prompt 0'"):
        frontier(silent, score, PROMPTS, heads=HEADS, show_progress=False)


@pytest.mark.parametrize(("prompts", "strengths"), [([], (0,)), (PROMPTS, ())])
def test_a_frontier_of_nothing_is_refused(prompts: list[str], strengths: tuple[float, ...]):
    with pytest.raises(ValueError, match="at least one prompt and one strength"):
        frontier(sample, score, prompts, heads=HEADS, strengths=strengths, show_progress=False)
