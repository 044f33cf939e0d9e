"""The gold task's prompts: how stories begin."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

from trimtab.guidance.errors import DataError

NUM_TRAIN = 700
_NUM_WORDS, _NUM_CHARACTERS = 8, 200


def load_prompts(stories: Path) -> tuple[list[str], list[str]]:
    """The prompts to train on and those to judge on: the first words of each story that begins in ASCII.

    stories: a list of strings as JSON, xz-compressed. Raises DataError where it cannot be read.
    """
    try:
        with lzma.open(stories, "rt", encoding="utf-8") as file:
            texts = json.load(file)
    except (OSError, lzma.LZMAError, ValueError) as error:
        raise DataError(f"{stories} cannot be read as a list of stories ({error})") from error
    prompts = [" ".join(t.split()[:_NUM_WORDS]) for t in texts if t[:_NUM_CHARACTERS].isascii()]
    return prompts[:NUM_TRAIN], prompts[NUM_TRAIN:]


def write_prompts(stories: Path, folder: Path) -> None:
    """train.jsonl and judge.jsonl with rows {prompt}."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, prompts in zip(("train", "judge"), load_prompts(stories), strict=True):
        rows = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)
        (folder / f"{name}.jsonl").write_text(rows, encoding="utf-8")
