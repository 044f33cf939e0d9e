"""Constitutions in YAML: what is read, and what is refused by its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from trimtab.guidance.errors import DataError
from trimtab.server.judging.constitution import QUESTION, load_constitution

GOOD = """
name: kind
principles:
  - text: Be kind.
  - text: Be brief.
    weight: 2
    question: Which is shorter?
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "constitution.yaml"
    path.write_text(text)
    return path


def test_weight_and_question_have_defaults(tmp_path):
    constitution = load_constitution(write(tmp_path, GOOD))
    assert constitution.name == "kind"
    kind, brief = constitution.principles
    assert (kind.text, kind.weight, kind.question) == ("Be kind.", 1, QUESTION)
    assert (brief.weight, brief.question) == (2, "Which is shorter?")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (GOOD.replace("weight", "weigth"), r"principles\[1\].weigth: unknown key"),
        (GOOD.replace("weight: 2", "weight: -1"), r"principles\[1\].weight: must be a number above 0"),
        (GOOD.replace("weight: 2", "weight: .nan"), "above 0"),
        (GOOD.replace("weight: 2", "weight: true"), "above 0"),
        (GOOD.replace("  - text: Be kind.", "  - question: Why?"), r"principles\[0\].text: is missing"),
        (GOOD.replace("Be brief.", "Be kind."), "twice"),
        (GOOD + "author: me", "author: unknown key"),
        (GOOD.replace("name: kind", ""), "name: is missing"),
        ("name: kind\nprinciples: []", "at least one"),
        ("name: kind\nprinciples: Be kind.", "must be a list"),
        ("name: kind\nprinciples: [Be kind.]", r"principles\[0\]"),
        ("- a\n- b", "the file"),
        ("", "the file"),
        ("a: [", "is not YAML"),
        ("!!python/object/apply:os.system ['true']", "is not YAML"),
    ],
)
def test_what_is_wrong_is_named_with_the_file(tmp_path, text, says):
    path = write(tmp_path, text)
    with pytest.raises(DataError, match=says) as refused:
        load_constitution(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.yaml"):
        load_constitution(tmp_path / "none.yaml")
