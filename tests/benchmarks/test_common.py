"""The frame that every benchmark stands in."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from benchmarks.common import (
    Document,
    as_table,
    main,
    parse,
    ratio_of,
    replace_between_markers,
    take_turns,
)

measured: list[int] = []


@dataclass(frozen=True)
class ToyConfig:
    """rows: of a batch."""

    rows: tuple[int, ...] = (1, 8)
    kind: Literal["a", "b"] | None = None
    is_warm: bool = False
    seed: int = 0
    repeats: int = 3
    out: Path | None = None

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise ValueError("repeats must be at least 1")


def measure(config: ToyConfig) -> Document:
    measured.append(config.seed)
    return {"milliseconds": {"median": 2.0, "p10": 1.0, "p90": 3.0}}


def table(found: Document) -> str:
    return as_table(["what", "ms"], [["a call", found["milliseconds"]]])


def test_flags_take_types_and_defaults_from_the_dataclass():
    assert parse(ToyConfig, "Doc.", []) == ToyConfig()
    flags = ["--rows", "2", "3", "--kind", "b", "--is-warm", "--seed", "5", "--out", "a/b.json"]
    assert parse(ToyConfig, "Doc.", flags) == ToyConfig((2, 3), "b", True, 5, 3, Path("a/b.json"))


@pytest.mark.parametrize("flags", [["--repeats", "0"], ["--kind", "c"], ["--rows", "x"], ["--nothing"]])
def test_flags_that_mean_nothing_are_refused(flags: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        parse(ToyConfig, "Doc.", flags)
    assert "error:" in capsys.readouterr().err


def test_a_run_ends_with_its_document_and_is_not_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out, said = tmp_path / "new" / "toy.json", []
    for seed in ("1", "1", "2"):
        main(ToyConfig, measure, table, ["--seed", seed, "--out", str(out)])
        said.append(capsys.readouterr().out)
        assert json.loads(said[-1].splitlines()[-1]) == json.loads(out.read_text(encoding="utf-8"))
        assert "| a call | 2 (1…3) |" in said[-1]
    assert measured == [1, 2]
    assert "threads" in said[0].splitlines()[0], "the hardware comes first"
    assert str(tmp_path) not in out.read_text(encoding="utf-8"), "it is committed, and holds no path"


def test_contestants_take_turns_and_each_begins_once_after_the_warm_up():
    order: list[tuple[str, int]] = []
    runs = {name: lambda turn, name=name: order.append((name, turn)) or len(order) for name in "abc"}
    found = take_turns(runs, 3, warm_up=1)
    assert "".join(name for name, _ in order[3:]) == "abcbcacab"
    assert [turn for _, turn in order[3:]] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert found == {"a": [4, 9, 11], "b": [5, 7, 12], "c": [6, 8, 10]}


def test_a_ratio_is_taken_within_each_turn():
    """By hand: 1/2 and 30/10, in turns that differ tenfold: their median is 1.75, not 15.5/6."""
    assert ratio_of([1, 30], [2, 10]).median == 1.75


def test_only_what_is_between_the_markers_changes():
    new = replace_between_markers("above\n(old)\nbelow\n", "(", ")", "tables")
    assert new == "above\n(\n\ntables\n\n)\nbelow\n"
    assert replace_between_markers(new, "(", ")", "tables") == new


@pytest.mark.parametrize("page", ["", "(", ")(", "(()"])
def test_a_page_without_its_markers_is_refused(page: str):
    with pytest.raises(ValueError, match="must hold"):
        replace_between_markers(page, "(", ")", "tables")
