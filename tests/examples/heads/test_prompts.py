from __future__ import annotations

import itertools
import json
from pathlib import Path

from examples.words import words

FOLDER = Path(__file__).parents[3] / "examples" / "heads" / "prompts"
SPLITS = ("train", "tuning", "test")


def test_a_kind_of_prompt_stands_in_one_split_only() -> None:
    kinds = {split: {row["kind"] for row in _rows(split)} for split in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not kinds[one] & kinds[other]
    assert sum(len(_rows(split)) for split in SPLITS) >= 400


def test_no_two_prompts_of_different_splits_are_nearly_the_same() -> None:
    asked = [
        (split, {word for _, word in words(row["prompt"][0]["content"])})
        for split in SPLITS
        for row in _rows(split)
    ]
    for (one, these), (other, those) in itertools.combinations(asked, 2):
        if one != other:
            assert len(these & those) < 0.8 * len(these | those), (these, those)


def _rows(split: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (FOLDER / f"{split}.jsonl").read_text("utf-8").splitlines()]  # type: ignore[misc]
