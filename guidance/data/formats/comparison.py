"""Two replies under numbered or lettered names, and a verdict: WebGPT, PKU, HelpSteer, SHP, arenas."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from trimtab.guidance.data.formats.exchange import Exchange, RatedReply, Turns
from trimtab.guidance.data.formats.names import SCORES, as_score, find, items
from trimtab.guidance.data.formats.pairs import pair_columns, split_pair
from trimtab.guidance.data.formats.prompts import prompt_column, read_prompt, text_of
from trimtab.guidance.data.formats.read import ReadRow
from trimtab.guidance.data.formats.turns import as_turns, is_turns, reply_turns
from trimtab.guidance.data.formats.verdict import Verdict, read_verdict
from trimtab.guidance.errors import DataError, TieError

_BASES = (
    *("answer", "response", "output", "completion", "reply", "generation", "summary", "conversation"),
    *("text", "human_ref", "assistant", "candidate", "model_output", "chat", ""),
)
_SUFFIXES = tuple(
    (f"{before}{one}", f"{before}{other}")
    for one, other in (("0", "1"), ("1", "2"), ("a", "b"), ("A", "B"))
    for before in ("_", "", " ", "-")
)
VERDICTS = (
    *("better_response_id", "winner", "choice", "preferred", "preferred_response", "preference"),
    *("preference_strength", "overall_preference", "grade", "comparison", "verdict", "judgement", "judgment"),
    *("labels", "label", "better", "best", "human_preference", "rating", "overall", "safer_response_id"),
)
"""Columns that tell which reply is better; the first that is there is read."""
_WINNERS = ("winner_model_a", "winner_model_b")
_SIDES = ("user", "assistant")
Names = tuple[str, str]


def looks_like(row: Mapping[str, Any]) -> bool:
    """Two replies, and something that tells which is better."""
    names = reply_columns(row) if pair_columns(row) is None else None
    return names is not None and (_verdict_column(row) is not None or score_names(row, names) is not None)


def reply_names() -> list[str]:
    """Every name that a reply may have."""
    return [base + suffix for base in _BASES for suffixes in _SUFFIXES for suffix in suffixes if base]


def reply_columns(row: Mapping[str, Any]) -> Names | None:
    """The columns of the two replies; None where there are none, or more than one such pair."""
    values = dict(items(row))
    found = [
        (base + one, base + other)
        for base in _BASES
        for one, other in _SUFFIXES
        if base or one.isalpha()
        if all(_is_reply(values.get(base + suffix)) for suffix in (one, other))
    ]
    return found[0] if len(found) == 1 else None


def _is_reply(value: Any) -> bool:
    return isinstance(text_of(value), str) or is_turns(value)


def _suffixes(names: Names) -> Names:
    return names[0][-1], names[1][-1]


def score_names(row: Mapping[str, Any], names: Names) -> Names | None:
    """The columns of the replies' scores, spelt as the replies are: score_0 beside answer_0."""
    (one, other), base = _suffixes(names), names[0][:-1].rstrip("_- ")
    for score in SCORES:
        for pattern in (f"{score}_%", f"{score}%", f"{score} %", f"{base}_%_{score}", f"{score}_{base}_%"):
            columns = pattern.replace("%", one), pattern.replace("%", other)
            if len(find(row, columns)) == len(columns):
                return columns
    return None


def _verdict_column(row: Mapping[str, Any]) -> str | None:
    found = find(row, VERDICTS)
    if not found and len(find(row, _WINNERS)) == len(_WINNERS):
        return _WINNERS[0]
    return found[0] if found else None


def read(row: ReadRow, as_text: bool) -> Exchange:
    """Raises DataError or TieError."""
    names = reply_columns(row)
    if names is None:
        raise DataError("no two replies such as response_0 and response_1")
    prompt, replies = _read_replies(row, names, as_text)
    column = _verdict_column(row)
    if column is None:
        return _scored(row, names, prompt, replies)
    verdict = _read_verdict(row, column, names)
    if verdict.better is None:
        raise TieError(f"{column} is {row[column]!r}")
    better, worse = replies[verdict.better], replies[1 - verdict.better]
    return Exchange(prompt, (RatedReply(better), RatedReply(worse)), is_ordered=True, margin=verdict.margin)


def _read_replies(
    row: ReadRow, names: Names, as_text: bool
) -> tuple[str | Turns, tuple[str | Turns, str | Turns]]:
    first, second = (text_of(row[name]) for name in names)
    column = prompt_column(row)
    if column is not None:
        talks = [_listed_talk(row.peek()[column], reply) for reply in (first, second)]
        first, second = talks if all(talks) else (first, second)
    if is_turns(first) and is_turns(second):
        one, other = as_turns(first, names[0]), as_turns(second, names[1])
        if len(one) > 1 or len(other) > 1:
            return split_pair(one, other, names)
        first, second = reply_turns(one, names[0]), reply_turns(other, names[1])
    return read_prompt(row, as_text), (first, second)


def _listed_talk(prompts: Any, replies: Any) -> Turns:
    """A conversation whose questions and answers are JSON lists of strings; [] where they are not."""
    try:
        asked, answered = json.loads(prompts), json.loads(replies)
    except (TypeError, ValueError):
        return []
    both = (asked, answered)
    if not all(isinstance(one, list) and one and all(isinstance(t, str) for t in one) for one in both):
        return []
    pairs = zip(asked, answered, strict=False)
    return [{"role": role, "content": t} for pair in pairs for role, t in zip(_SIDES, pair, strict=True)]


def _scored(row: ReadRow, names: Names, prompt: str | Turns, replies: tuple[Any, Any]) -> Exchange:
    columns = score_names(row, names)
    if columns is None:
        raise DataError(f"nothing tells which of {names[0]} and {names[1]} is better")
    scores = (as_score(row[column], column) for column in columns)
    told = tuple(RatedReply(text, score) for text, score in zip(replies, scores, strict=True))
    return Exchange(prompt, told, is_rated=True)


def _read_verdict(row: ReadRow, column: str, names: Names) -> Verdict:
    if column == _WINNERS[0]:
        flags = [bool(as_score(row[name], name)) for name in _WINNERS]
        return Verdict(None if flags[0] == flags[1] else flags.index(True))
    return read_verdict(row[column], column, names)
