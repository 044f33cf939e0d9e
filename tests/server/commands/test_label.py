"""`trimtab label` with judges on this machine: fair, biased, broken, and our own server."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from local_judge import Say, local_judge

from trimtab.guidance.data.load import load_preferences, load_rankings
from trimtab.server.cli import main

CONSTITUTION = """
name: long
principles:
  - text: Say more.
  - text: Say less.
    weight: 3
"""
REPLY = re.compile(r"\[Reply ([AB])\]\n(.*?)\n\[End", re.DOTALL)


def by_length(text: str) -> Say:
    """Prefers what the principle asks for, without a liking for a position."""
    replies = dict(REPLY.findall(text))
    longer, shorter = ("A", "B") if len(replies["A"]) > len(replies["B"]) else ("B", "A")
    return Say(longer if "Say more." in text else shorter)


def first_one(text: str) -> Say:
    return Say("A")


@pytest.fixture
def flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    Path("constitution.yaml").write_text(CONSTITUTION)
    rows = [
        {"prompt": f"p{i}", "completion": "x" * (j + 1), "token_ids": [7] * (j + 1), "is_cut": j == 0}
        for i in range(4)
        for j in range(3)
    ]
    Path("rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--constitution", "constitution.yaml", "--rollouts", "rollouts.jsonl", "--out", "out.parquet"]


def run(judge_url: str, *flags: str) -> None:
    assert main(["label", *flags, "--judge-url", judge_url]) == 0


def complaint(capsys: pytest.CaptureFixture[str], *args: str, code: int = 1) -> str:
    capsys.readouterr()
    assert main(["label", *args]) == code
    return capsys.readouterr().err.splitlines()[-1]


def report() -> dict[str, Any]:
    return json.loads(Path("out.report.json").read_text())


def test_all_principles_are_weighed(flags):
    """Less (weight 3) beats more (weight 1) in each of 4 · 3 pairs, and each pair is asked 2 · 2 times."""
    with local_judge(by_length) as judge:
        run(judge.url, *flags, "--principles", "all")
    pairs = load_preferences(Path("out.parquet")).rows
    assert len(pairs) == 12
    assert all(len(pair.chosen) < len(pair.rejected) for pair in pairs)
    assert all(len(p.chosen_sampled.token_ids) == len(p.chosen) for p in pairs)
    assert {(p.chosen, p.chosen_sampled.is_cut) for p in pairs} == {("x", True), ("xx", False)}
    told = report()
    assert (told["num_comparisons"], told["num_questions"], told["disagreement"]) == (24, 48, 0.0)
    assert told["first_position"] == 0.5
    assert [entry["num_judged"] for entry in told["by_principle"]] == [12, 12]


def test_a_pure_liking_for_the_first_position_yields_no_preference(flags, capsys):
    with local_judge(first_one) as judge:
        told = complaint(capsys, *flags, "--judge-url", judge.url)
    assert "disagree in 100% of 12" in told
    assert (report()["disagreement"], report()["first_position"], report()["num_rows"]) == (1.0, 1.0, 0)
    assert report()["num_dropped_pairs"] == 12
    assert not Path("out.parquet").exists()


def test_disagreement_kept_as_a_tie_still_yields_no_preference(flags, capsys):
    with local_judge(first_one) as judge:
        complaint(capsys, *flags, "--judge-url", judge.url, "--on-disagreement", "tie")
    assert (report()["num_tied_pairs"], report()["num_dropped_pairs"]) == (12, 0)


def test_rankings_are_by_win_rate(flags):
    Path("constitution.yaml").write_text("name: more\nprinciples: [{text: Say more.}]")
    with local_judge(by_length) as judge:
        run(judge.url, *flags, "--write", "rankings")
    for ranking in load_rankings(Path("out.parquet")).rows:
        assert dict(zip(ranking.responses, ranking.ranks, strict=True)) == {"xxx": 1, "xx": 2, "x": 3}
        assert [len(sampled.token_ids) for sampled in ranking.sampled] == [1, 2, 3]


def test_rankings_can_be_labelled_anew_and_have_no_tokens_to_keep(flags):
    row = {"prompt": [{"role": "user", "content": "hi"}], "responses": ["a", "bb"], "ranks": [1, 2]}
    Path("rankings.jsonl").write_text(json.dumps(row) + "\n")
    Path("constitution.yaml").write_text("name: more\nprinciples: [{text: Say more.}]")
    with local_judge(by_length) as judge:
        run(judge.url, *flags[:2], "--rankings", "rankings.jsonl", "--out", "out.parquet")
        assert "user: hi" in judge.asked[0]["messages"][0]["content"]
    (made,) = pq.read_table("out.parquet").to_pylist()
    assert made == {"prompt": [{"role": "user", "content": "hi"}], "chosen": "bb", "rejected": "a"}


def test_probabilities_decide_where_letters_would_disagree(flags):
    """A reply twice as long gets 0.9 when shown first and 0.4 when second: 0.75 of the mean, kept as agreed
    only where both are above a half."""
    Path("constitution.yaml").write_text("name: more\nprinciples: [{text: Say more.}]")

    def soft(text: str) -> Say:
        replies = dict(REPLY.findall(text))
        a_is_longer = len(replies["A"]) > len(replies["B"])
        return Say("A", first={"A": -0.105, "B": -2.303} if a_is_longer else {"A": -0.916, "B": -0.511})

    with local_judge(soft) as judge:
        run(judge.url, *flags)
    assert report()["disagreement"] == 0
    assert report()["first_position"] == pytest.approx(0.65, abs=1e-3)
    assert all(len(p.chosen) > len(p.rejected) for p in load_preferences(Path("out.parquet")).rows)


def test_a_judge_that_sometimes_answers_garbage_is_counted_and_skipped(flags, capsys):
    with local_judge(lambda text: Say("Well…") if "p1" in text else by_length(text)) as judge:
        run(judge.url, *flags, "--max-failures", "0.5")
    assert "6 of 24 questions were not answered (6 garbage)" in capsys.readouterr().out
    assert (report()["failures"], report()["num_unjudged"]) == ({"garbage": 6}, 3)
    assert {p.prompt for p in load_preferences(Path("out.parquet")).rows} == {"p0", "p2", "p3"}


def test_too_many_failures_stop_and_a_rerun_asks_only_for_the_rest(flags, capsys):
    with local_judge(lambda text: Say("Well…") if "p3" in text else by_length(text)) as judge:
        # One question at a time: none is on its way when the command stops.
        told = complaint(capsys, *flags, "--judge-url", judge.url, "--concurrency", "1")
        assert "such as garbage: want A or B, got 'Well…'" in told
        assert not Path("out.parquet").exists()
        kept, judge.answer = len(Path("out.answers.jsonl").read_text().splitlines()), by_length
        assert kept >= 12
        judge.asked.clear()
        run(judge.url, *flags)
        assert len(judge.asked) == 24 - kept
    assert len(load_preferences(Path("out.parquet")).rows) == 12


def test_fewer_pairs_are_drawn_by_the_seed(flags):
    asked = {}
    for seed in ("1", "1 again", "2"):
        with local_judge(by_length) as judge:
            run(judge.url, *flags, "--pairs-per-prompt", "1", "--seed", seed[0], "--concurrency", "1")
        asked[seed] = [body["messages"][0]["content"] for body in judge.asked]
        assert len(asked[seed]) == 8
    assert asked["1"] == asked["1 again"] != asked["2"]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--judge-url", ""], "--judge-url"),
        (["--judge-url", "localhost:1"], "http://"),
        (["--judge-url", "http://localhost:1/v1", "--api-key-env", "NO_SUCH_KEY"], "NO_SUCH_KEY"),
        (["--judge-url", "http://localhost:1/v1", "--constitution", "none.yaml"], "none.yaml"),
        (["--judge-url", "http://localhost:1/v1", "--rollouts", "none.jsonl"], "none.jsonl"),
        (["--judge-url", "http://127.0.0.1:1/v1", "--retries", "0"], "not reached"),
    ],
)
def test_wrong_input_is_told_in_one_line(flags, capsys, wrong, says):
    assert says in complaint(capsys, *flags, *wrong)


@pytest.mark.parametrize(
    "wrong", [["--rankings", "r.jsonl"], ["--concurrency", "0"], ["--max-failures", "2"], ["--out", "o.csv"]]
)
def test_flags_that_describe_no_run_exit_with_2(flags, capsys, wrong):
    assert "--help" in complaint(capsys, *flags, *wrong, code=2)


def test_prompts_with_one_reply_are_not_enough(flags, capsys):
    Path("rollouts.jsonl").write_text(json.dumps({"prompt": "p", "completion": "a"}) + "\n")
    told = complaint(capsys, *flags, "--judge-url", "http://127.0.0.1:1/v1")
    assert "two different replies" in told
