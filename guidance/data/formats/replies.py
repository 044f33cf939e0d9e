"""Reply lists: read a prompt and judged replies, in a list or in columns of their own: Nectar, UltraFeedback,
GSM8K."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.guidance.data.formats.exchange import Exchange, RatedReply, Turns
from trimtab.guidance.data.formats.names import LABELS, SCORES, as_label, as_score, find, items
from trimtab.guidance.data.formats.pairs import pair_columns
from trimtab.guidance.data.formats.prompts import as_prompt, read_prompt
from trimtab.guidance.data.formats.read import ReadRow
from trimtab.guidance.errors import DataError

_LISTS = (
    *("answers", "completions", "responses", "candidates", "summaries", "outputs", "replies"),
    *("generations", "solutions", "samples", "texts"),
)
_TEXTS = (
    *("response", "answer", "text", "content", "completion", "output", "solution", "summary"),
    *("generated_text", "generation"),
)
_RANKS = ("rank", "ranks", "ranking")
_SCORE_LISTS = ("scores", "ratings", "rewards", "rating", "score", "overall_scores")
_LABEL_LISTS = ("labels", "correct", "is_correct", "correctness")


def looks_like(row: Mapping[str, Any]) -> bool:
    """Several replies, each with a rank, a score or a thumb."""
    if pair_columns(row) is not None:
        return False  # somebody has chosen among them
    return _list_column(row) is not None or bool(_nested(row))


def _list_column(row: Mapping[str, Any]) -> str | None:
    values = dict(items(row))
    for name in find(row, _LISTS):
        value = values[name]
        if isinstance(value, list) and value:
            if all(map(_is_judged, value)) or (_is_text(value) and _is_chosen(row)):
                return name
            beside = find(row, (*_RANKS, *_SCORE_LISTS, *_LABEL_LISTS))
            is_listed = any(isinstance(values[other], list) for other in beside)
            if all(isinstance(one, str) for one in value) and is_listed and not _is_ours(row):
                return name
    return None


def _is_ours(row: Mapping[str, Any]) -> bool:
    return {"prompt", "responses", "ranks"} <= {name for name, value in items(row) if value is not None}


def _is_text(value: Sequence[Any]) -> bool:
    return all(isinstance(one, dict) and find(one, _TEXTS) for one in value)


def _is_chosen(row: Mapping[str, Any]) -> bool:
    return isinstance(dict(items(row)).get("choice"), int)


def _is_judged(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    return bool(find(value, _TEXTS)) and bool(find(value, (*_RANKS, *SCORES, *LABELS)))


def _nested(row: Mapping[str, Any]) -> list[str]:
    return [name for name, value in items(row) if _is_judged(value)]


def read(row: ReadRow, as_text: bool) -> Exchange:
    """Raises DataError."""
    column, prompt = _list_column(row), _prompt(row, as_text)
    if column is None:
        nested = _nested(row)
        if not nested:
            raise DataError("no list of replies with ranks, scores or labels")
        return _exchange(prompt, [row[name] for name in nested])
    value = row[column]
    if isinstance(value[0], str):
        return _beside(row, column, prompt)
    if not all(map(_is_judged, value)):
        return _chosen(row, prompt, value)
    return _exchange(prompt, value)


def _prompt(row: ReadRow, as_text: bool) -> str | Turns:
    info = row.peek().get("info")
    if isinstance(info, dict):
        return as_prompt(row["info"], "info", as_text=as_text)
    return read_prompt(row, as_text)


def _exchange(prompt: str | Turns, judged: Sequence[Mapping[str, Any]]) -> Exchange:
    replies = tuple(map(_reply, judged))
    return Exchange(prompt, replies, is_rated=not any(find(one, _RANKS) for one in judged))


def _reply(judged: Mapping[str, Any]) -> RatedReply:
    text, ranks = judged[find(judged, _TEXTS)[0]], find(judged, _RANKS)
    if ranks:
        return RatedReply(text, score=-as_score(judged[ranks[0]], ranks[0]))
    scores, labels = find(judged, SCORES), find(judged, LABELS)
    return RatedReply(
        text,
        as_score(judged[scores[0]], scores[0]) if scores else None,
        as_label(judged[labels[0]], labels[0]) if labels else None,
    )


def _beside(row: ReadRow, column: str, prompt: str | Turns) -> Exchange:
    """Replies that are strings, and what judges them in a list beside them."""
    texts = row[column]
    (name, *_) = [
        name
        for name in find(row, (*_RANKS, *_SCORE_LISTS, *_LABEL_LISTS))
        if isinstance(row.peek()[name], list)
    ]
    judged = row[name]
    if len(judged) != len(texts):
        raise DataError(f"{name} must have {len(texts)} entries, one for each of {column}, got {len(judged)}")
    if name in _LABEL_LISTS:
        replies = [
            RatedReply(text, is_good=as_label(one, name)) for text, one in zip(texts, judged, strict=True)
        ]
        return Exchange(prompt, tuple(replies))
    sign = -1.0 if name in _RANKS else 1.0
    scores = (sign * as_score(one, name) for one in judged)
    told = tuple(RatedReply(text, score) for text, score in zip(texts, scores, strict=True))
    return Exchange(prompt, told, is_rated=name not in _RANKS)


def _chosen(row: ReadRow, prompt: str | Turns, texts: Sequence[Mapping[str, Any]]) -> Exchange:
    """`choice` is the number of the better of two."""
    choice = row["choice"]
    if len(texts) != 2 or choice not in (0, 1):
        raise DataError(f"choice must be 0 or 1, of two replies, got {choice!r} of {len(texts)}")
    both = [RatedReply(one[find(one, _TEXTS)[0]]) for one in texts]
    return Exchange(prompt, (both[choice], both[1 - choice]), is_ordered=True)
