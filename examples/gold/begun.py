"""Beginnings of the policy's own replies, as prompts: states that it comes by."""

from __future__ import annotations

import json
import random
from pathlib import Path

from trimtab.guidance.data.load import load_rollouts


def write_begun(rollouts: Path, out: Path, *, per_reply: int = 1, seed: int = 0) -> None:
    """Rows {prompt}: each prompt with the words of a reply to it up to some word. Reply strings only.

    Raises DataError where the rollouts cannot be read.
    """
    draw = random.Random(seed)
    rows = dict.fromkeys(
        row.prompt + row.completion[: draw.choice(_cuts(row.completion))]
        for row in load_rollouts(rollouts).rows
        if isinstance(row.prompt, str)
        for _ in range(per_reply)
    )
    out.write_text("".join(json.dumps({"prompt": row}) + "\n" for row in rows), encoding="utf-8")


def _cuts(reply: str) -> list[int]:
    """Where the reply may be cut: before any of its words."""
    return [0, *(at for at, character in enumerate(reply) if character.isspace() and at)]
