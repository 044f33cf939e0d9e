from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path
from typing import Any

from examples.words import words

FOLDER = Path(__file__).parents[3] / "examples" / "heads" / "prompts"
SPLITS = ("train", "tuning", "test")


def test_a_kind_of_prompt_stands_in_one_split_only() -> None:
    kinds = {split: {row["kind"] for row in _rows(split)} for split in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not kinds[one] & kinds[other]
    assert sum(len(_rows(split)) for split in SPLITS) >= 420


def test_no_two_prompts_are_nearly_the_same() -> None:
    files = (*SPLITS, "harmful", "sounds_harmful")
    asked = [
        {word for _, word in words(row["prompt"][0]["content"])} for name in files for row in _rows(name)
    ]
    for these, those in itertools.combinations(asked, 2):
        assert len(these & those) < 0.8 * len(these | those), (these, those)


def test_every_row_is_one_short_question_of_a_user() -> None:
    for name in (*SPLITS, "harmful", "sounds_harmful"):
        for row in _rows(name):
            [message] = row["prompt"]
            assert message["role"] == "user"
            assert 3 <= len(message["content"].split()) <= 40


def test_the_harmless_pairs_are_as_many_as_their_split_says() -> None:
    with gzip.open(FOLDER.parent / "data" / "hh_harmless.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    assert len(rows) == 2312
    assert all(row.keys() == {"chosen", "rejected"} for row in rows)


def _rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text("utf-8").splitlines()]
