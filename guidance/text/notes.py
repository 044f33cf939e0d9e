"""Oddities of rows that are read all the same: counted by kind, and told in one line each with the first."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

SHOWN = 60

NOTES = {
    "chat": "{n} prompts are strings and became one user message each, as in a chat (--rows text leaves them "
    "as they are)",
    "rendered": "{n} prompts hold the chat template's own markers, as if they were rendered already, and "
    "become one user message each: give them as messages, or with --rows text",
    "json": "{n} prompts are a list of messages written as text: give them as a list",
    "json reply": "{n} replies are a message written as text: give them as a list, or their content alone",
    "special": "{n} texts hold special tokens of the tokenizer and are read as these: take them out where "
    "they were only meant as words",
    "system": "{n} prompts have a system message that is not the first",
    "two beginnings": "{n} prompts begin with the beginning-of-sequence token, and the tokenizer adds "
    "another: take it out of the text",
    "header": "{n} replies begin with the assistant's header, which is taken off: the prompt ends with it",
    "end": "{n} replies end with a token that ends replies, which is taken off: each gets one",
    "end inside": "{n} replies go on after a token that ends replies, where serving would stop: cut them "
    "there",
    "foreign end": "{n} replies end as another model's do, with what is no token here and is read as words: "
    "take it off",
    "no end": "{n} replies have token_ids without an end token and are not cut: one is added, as serving "
    "does, and no part but the reward learns from it",
}


@dataclass
class RowNotes:
    """By what is noted: how often, and the first example."""

    counts: dict[str, int] = field(default_factory=dict)
    firsts: dict[str, str] = field(default_factory=dict)

    def add(self, note: str, example: str) -> None:
        """note: a key of NOTES, or the text itself, in which {n} is the count."""
        self.counts[note] = self.counts.get(note, 0) + 1
        self.firsts.setdefault(note, example)

    def lines(self) -> list[str]:
        return [
            f"{NOTES.get(note, note).format(n=num)}; first {_shown(self.firsts[note])}"
            for note, num in self.counts.items()
        ]

    def tell(self, logger: logging.Logger, where: object) -> None:
        """One warning a note, and forgets them."""
        for line in self.lines():
            logger.warning("%s: %s", where, line)
        self.counts.clear()
        self.firsts.clear()


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN else text[:SHOWN] + "…")
