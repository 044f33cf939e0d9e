"""`trimtab frontier` with a tiny random model and a judge that counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_models import SIZES, save_random_head, save_random_model
from transformers import LlamaConfig

from trimtab.server.cli import main
from trimtab.server.commands.frontier import load_judge

JUDGE = """
def score(prompt, reply):
    return {"length": len(reply) / 16, "vowels": sum(c in "aeiou" for c in reply) if reply else None}
"""


@pytest.fixture
def flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    policy = save_random_model(LlamaConfig(**SIZES), tmp_path / "tiny")
    heads = [save_random_head(tmp_path / "heads", policy, name, seed=i) for i, name in enumerate("ab")]
    (tmp_path / "counting_judge.py").write_text(JUDGE)
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": f"say {i}"}) + "\n" for i in range(6))
    )
    monkeypatch.chdir(tmp_path)
    return [
        *("--model", str(policy), "--heads", *map(str, heads), "--judge", "counting_judge:score"),
        *("--prompts", "prompts.jsonl", "--max-tokens", "8", "--strengths", "0", "2", "--num-prompts", "4"),
    ]


def read(folder: str) -> dict:
    return json.loads(Path(folder, "frontier.json").read_text())


def test_it_writes_a_table_a_report_and_a_plot(flags, capsys):
    assert main(["frontier", *flags, "--out", "out", "--num-replies", "2"]) == 0
    assert "| +2 |" in capsys.readouterr().out
    report = read("out")
    plain, steered = report["points"]
    assert report["num_prompts"] == 4
    assert report["heads"] == [["a", 1.0], ["b", 1.0]]
    assert (plain["strength"], plain["num_replies"], plain["kl"]["mean"]) == (0.0, 8, 0.0)
    assert steered["kl"]["mean"] > 0
    assert 0 < plain["scores"]["length"]["estimate"]["mean"] <= 1
    assert Path("out/frontier.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_seed_gives_the_same_report_and_another_does_not(flags):
    for out, seed in (("one", "3"), ("two", "3"), ("other", "4")):
        assert main(["frontier", *flags, "--steer", "a=0.5", "--out", out, "--seed", seed]) == 0
    assert read("one") == read("two")
    assert read("one")["heads"] == [["a", 0.5]]
    assert read("one")["points"] != read("other")["points"]


@pytest.mark.parametrize("judge", ["no_such_module:score", "json:no_such_function", "json", ":score", ""])
def test_a_judge_that_cannot_be_had_is_told_before_anything_is_loaded(flags, capsys, judge):
    assert main(["frontier", *flags, "--judge", judge]) == 1
    (line,) = [told for told in capsys.readouterr().err.splitlines() if told.startswith("trimtab")]
    assert "module:function" in line


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--prompts", "none.jsonl"], "none.jsonl"),
        (["--steer", "c=1"], "heads.c"),
        (["--model", "no/such"], "no/such"),
    ],
)
def test_other_wrong_input_is_told_in_one_line(flags, capsys, wrong, says):
    capsys.readouterr()
    assert main(["frontier", *flags, *wrong]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert says in lines[-1]
    assert lines[-1].startswith("trimtab: ")


def test_a_judge_is_found_in_the_current_folder(flags):
    assert load_judge("counting_judge:score")("p", "aei")["vowels"] == 3
