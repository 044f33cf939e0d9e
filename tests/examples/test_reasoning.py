"""Rows of solved questions, and the file that they come from."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest

from examples.reasoning.__main__ import load_questions, rows
from trimtab.guidance.errors import DataError

QUESTION = {
    "question": "1 + 1?",
    "ground_truth": "2",
    "small": {"is_correct": False, "solution": "A: 3"},
    "large": {"is_correct": True, "solution": "A: 2"},
    "larger": {"is_correct": True, "solution": "A: 2"},
}


def test_a_solution_that_two_models_found_is_one_row(tmp_path: Path):
    path = tmp_path / "solutions.jsonl.xz"
    with lzma.open(path, "wt", encoding="utf-8") as file:
        file.write(json.dumps(QUESTION) + "\n")
    asked = [{"role": "user", "content": "1 + 1?"}]
    assert list(rows(load_questions(path))) == [
        {"prompt": asked, "completion": "A: 3", "label": False},
        {"prompt": asked, "completion": "A: 2", "label": True},
    ]


def test_a_file_that_is_no_solutions_is_named(tmp_path: Path):
    (tmp_path / "x.xz").write_bytes(b"no xz")
    with pytest.raises(DataError, match=r"x\.xz cannot be read as JSON lines"):
        load_questions(tmp_path / "x.xz")
