r"""Transcripts, as HH-RLHF has them: "\n\nHuman: …\n\nAssistant: …" in one string, read as turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trimtab.guidance.data.formats import comparison, replies
from trimtab.guidance.data.formats.exchange import Exchange, RatedReply, Turns
from trimtab.guidance.data.formats.names import LABELS, REPLIES, as_label, find, items
from trimtab.guidance.data.formats.pairs import margin_of, pair_columns, split_pair
from trimtab.guidance.data.formats.read import ReadRow
from trimtab.guidance.data.formats.turns import (
    is_transcript,
    split_reply,
    split_text,
    split_text_reply,
    transcript_prompt,
    transcript_turns,
)
from trimtab.guidance.errors import DataError, TieError

_PROMPTS = ("prompt", "transcript", "text")


def looks_like(row: Mapping[str, Any]) -> bool:
    """Both replies are transcripts, or a prompt is one and what stands beside it are strings."""
    values, pair = dict(items(row)), pair_columns(row)
    if pair is not None and all(is_transcript(values[name]) for name in pair):
        return True
    if comparison.looks_like(row) or replies.looks_like(row):
        return False
    prompts = find(row, _PROMPTS)
    beside = [values[name] for name in (pair or find(row, REPLIES))]
    return bool(prompts) and is_transcript(values[prompts[0]]) and all(isinstance(v, str) for v in beside)


def read(row: ReadRow, as_text: bool) -> Exchange:
    """Raises DataError or TieError."""
    pair = pair_columns(row)
    if pair is not None and all(is_transcript(row[name]) for name in pair):
        return _read_pair(row, pair, as_text)
    prompts = find(row, _PROMPTS)
    if not prompts or not is_transcript(row[prompts[0]]):
        raise DataError("nothing begins with Human:, as a transcript does")
    name = prompts[0]
    prompt = row[name] if as_text else transcript_prompt(row[name], name)
    if pair is not None:
        both = tuple(RatedReply(_reply(row[one], one, as_text)) for one in pair)
        return Exchange(prompt, both, is_ordered=True, margin=margin_of(row))
    labels, columns = find(row, LABELS), find(row, REPLIES)
    is_good = as_label(row[labels[0]], labels[0]) if labels else None
    if columns:
        told = RatedReply(_reply(row[columns[0]], columns[0], as_text), is_good=is_good)
        return Exchange(prompt, (told,))
    before, reply = split_text_reply(prompt) if isinstance(prompt, str) else split_reply(prompt)
    return Exchange(before, (RatedReply(reply, is_good=is_good),) if reply else ())


def _read_pair(row: ReadRow, pair: tuple[str, str], as_text: bool) -> Exchange:
    row.get("prompt")  # once more what both begin with
    chosen, rejected = row[pair[0]], row[pair[1]]
    if chosen == rejected:
        raise TieError(f"{pair[0]} and {pair[1]} are the same")
    if as_text:
        prompt, texts = split_text(chosen, rejected)
        told = tuple(map(RatedReply, texts))
        return Exchange(prompt, told, is_ordered=True, margin=margin_of(row))
    turns, ends = split_pair(transcript_turns(chosen, pair[0]), transcript_turns(rejected, pair[1]), pair)
    return Exchange(turns, tuple(map(RatedReply, ends)), is_ordered=True, margin=margin_of(row))


def _reply(value: Any, name: str, as_text: bool) -> str | Turns:
    if not isinstance(value, str):
        raise DataError(f"{name} must be a string beside a transcript, got {str(value)[:40]!r}")
    return value if as_text else [{"role": "assistant", "content": value.strip()}]
