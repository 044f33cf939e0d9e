"""The gold task's prompts: how stories begin."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterable, Set
from pathlib import Path

from trimtab.guidance.errors import DataError

NUM_TRAIN, NUM_TUNING = 600, 100
_NUM_WORDS, _NUM_CHARACTERS = 8, 200


def load_prompts(stories: Path) -> dict[str, list[str]]:
    """The first words of stories that begin in ASCII: prompts to train on, to choose settings on, to judge.

    Many stories begin alike. Training sees prompts as often as they come; what settings are chosen on are
    prompts that training did not see, and what is judged on none that either saw, each once.

    stories: a list of strings as JSON, xz-compressed. Raises DataError where it cannot be read.
    """
    try:
        with lzma.open(stories, "rt", encoding="utf-8") as file:
            texts = json.load(file)
    except (OSError, lzma.LZMAError, ValueError) as error:
        raise DataError(f"{stories} cannot be read as a list of stories ({error})") from error
    prompts = [" ".join(t.split()[:_NUM_WORDS]) for t in texts if t[:_NUM_CHARACTERS].isascii()]
    train, tuning = prompts[:NUM_TRAIN], prompts[NUM_TRAIN : NUM_TRAIN + NUM_TUNING]
    tuning = _unseen(tuning, set(train))
    return {
        "train": train,
        "tuning": tuning,
        "judge": _unseen(prompts[NUM_TRAIN + NUM_TUNING :], {*train, *tuning}),
    }


def write_prompts(stories: Path, folder: Path) -> None:
    """train.jsonl, tuning.jsonl and judge.jsonl with rows {prompt}."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, prompts in load_prompts(stories).items():
        rows = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)
        (folder / f"{name}.jsonl").write_text(rows, encoding="utf-8")


def _unseen(prompts: Iterable[str], seen: Set[str]) -> list[str]:
    return [prompt for prompt in dict.fromkeys(prompts) if prompt not in seen]
