"""Hints for a row that does not fit: what it looks like, and flags that would read it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.guidance.data.formats.names import PROMPTS
from trimtab.guidance.data.formats.registry import FORMATS, TRL
from trimtab.guidance.data.rows import ROW_KINDS

_MAX_SHOWN = 12
_LIKELY: Mapping[str, tuple[str, ...]] = {
    "prompt": (*PROMPTS, "text", "src", "source_text", "problem", "title", "task", "user", "message"),
    "chosen": (
        *("good", "better", "best", "preferred", "positive", "pos", "win", "winner", "winning", "accepted"),
        *("chosen_response", "liked", "yw", "y_w", "output_1", "response_w", "safe", "helpful"),
    ),
    "rejected": (
        *(
            "bad",
            "worse",
            "worst",
            "dispreferred",
            "negative",
            "neg",
            "lose",
            "loser",
            "losing",
            "unpreferred",
        ),
        *(
            "rejected_response",
            "disliked",
            "yl",
            "y_l",
            "output_2",
            "response_l",
            "unsafe",
            "harmful",
            "lost",
        ),
    ),
    "completion": (
        "response",
        "output",
        "answer",
        "reply",
        "text",
        "generation",
        "target",
        "story",
        "content",
    ),
    "label": ("is_good", "good", "thumb", "thumbs", "feedback", "rating", "correct", "is_correct", "liked"),
    "responses": ("answers", "completions", "outputs", "replies", "candidates", "texts"),
    "ranks": ("ranking", "rank", "order"),
}
"""Names that a column may have in place of ours; too general to be taken without being told."""


def hint(row: Mapping[str, Any], kind: str, name: str, others: Sequence[str], kinds: Sequence[str]) -> str:
    """The end of an error: the row's columns and the flag that helps.

    name: the format it was read as. others: the formats that it looks like. kinds: kinds that it holds.
    """
    columns = list(row)
    shown = ", ".join(map(str, columns[:_MAX_SHOWN])) + (", …" if len(columns) > _MAX_SHOWN else "")
    told = f": the row has {shown or 'no columns'}"
    if others and others != [TRL]:
        titles = " or ".join(FORMATS[other].title for other in others if other != TRL)
        return f"{told}; it looks like {titles}: give --format {others[0]}"
    mapping = suggested_columns(row, kind)
    if mapping:
        return f"{told}: give --columns {','.join(f'{ours}={theirs}' for ours, theirs in mapping.items())}"
    useful = [other for other in kinds if other not in (kind, "prompts")]
    if useful == ["rollouts"]:
        return f"{told}: give it as --prompts, or as --rollouts where the policy itself sampled the replies"
    if useful:
        return f"{told}: it holds {useful[0]}, so give it as --{useful[0]}"
    wanted = ",".join(f"{column}=…" for column in ROW_KINDS[kind].columns)
    known = "" if name != TRL else f"; or give --format, one of {', '.join(FORMATS)}"
    return f"{told}: map them with --columns {wanted}{known}"


def suggested_columns(row: Mapping[str, Any], kind: str) -> dict[str, str]:
    """Our columns that are missing, with those of the row that may be meant; {} where one is not found."""
    mapping: dict[str, str] = {}
    for ours in dict.fromkeys(("prompt", *ROW_KINDS[kind].columns)):
        if row.get(ours) is not None:
            continue
        likely = _likely(ours, [name for name in row if name not in (ours, *mapping.values())])
        if likely is not None:
            mapping[ours] = likely
        elif ours in ROW_KINDS[kind].columns:
            return {}
    return mapping


def _likely(ours: str, columns: Sequence[str]) -> str | None:
    small = {str(name).lower(): name for name in columns}
    for name in (*_LIKELY.get(ours, ()), *difflib.get_close_matches(ours, small, n=1, cutoff=0.8)):
        if name in small:
            return small[name]
    return None
