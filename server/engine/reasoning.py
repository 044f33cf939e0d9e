"""Reasoning in replies: finds the tags that a model thinks between, and follows a reply into it and out.

No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from trimtab.server.engine.request import Scores, StepValue

Part = Literal["reasoning", "answer"]
KNOWN = (
    ("<think>", "</think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<reasoning>", "</reasoning>"),
)
"""Tags of published models, each a token of its own."""
_ENDS = (".", "!", "?")


@dataclass(frozen=True, slots=True)
class Tags:
    """Token ids."""

    opening: int
    closing: int

    def after(self, token_id: int, reasons: bool) -> bool:
        """Whether the next token is drawn within the reasoning."""
        return token_id == self.opening or (reasons and token_id != self.closing)

    def reasons_after(self, tokens: Sequence[int]) -> bool:
        """Whether what follows these tokens is reasoning: whether the last tag opens it."""
        last = next((token for token in reversed(tokens) if token in (self.opening, self.closing)), None)
        return last == self.opening


def find_tags(added_tokens: Mapping[int, Any]) -> Tags | None:
    """The tags among a tokenizer's added tokens, id → token; None where it has none of KNOWN."""
    ids = {str(token): token_id for token_id, token in added_tokens.items()}
    pairs = ((ids.get(opening), ids.get(closing)) for opening, closing in KNOWN)
    return next((Tags(a, b) for a, b in pairs if a is not None and b is not None), None)


@dataclass(slots=True)
class ReasoningFollower:
    """Follows one reply: which part a token belongs to, and the values where sentences of the reasoning end.

    reasons: whether the next token is drawn within the reasoning.
    """

    tags: Tags
    reasons: bool
    steps: list[StepValue] = field(default_factory=list)
    _num_tokens: int = 0
    _has_said: bool = False  # since the last step ended
    _may_end: bool = False  # the text ends with a point: a step's end, if a space follows
    _has_ended: bool = False

    def take(self, token_id: int, text: str, value: Scores) -> Part:
        """The token's part. text: its own. value: V before it, which is what the step came to that ended with
        the token before."""
        was, self.reasons = self.reasons, self.tags.after(token_id, self.reasons)
        is_tag = token_id in (self.tags.opening, self.tags.closing)
        if was and self._has_said and (self._has_ended or is_tag or (self._may_end and text[:1].isspace())):
            self.steps.append(StepValue(self._num_tokens, value))
            self._has_said = self._has_ended = False
        self._num_tokens += 1
        if is_tag or not was:
            self._has_said = self._has_ended = self._may_end = False
            return "reasoning" if was else "answer"
        self._has_said |= bool(text.strip())
        self._has_ended = self._has_said and _ends_within(text)
        self._may_end = text.endswith(_ENDS) if text else self._may_end
        return "reasoning"


def _ends_within(text: str) -> bool:
    """Whether a line ends in the text, or a sentence behind which space follows."""
    return "\n" in text or any(before in _ENDS and after.isspace() for before, after in pairwise(text))
