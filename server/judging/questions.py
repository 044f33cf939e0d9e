"""Questions to a judge: word them, and read verdicts out of the answers."""

from __future__ import annotations

import math
import re

from trimtab.guidance.text.message import Prompt
from trimtab.server.judging.answers import Answer, GarbageError, Question
from trimtab.server.judging.constitution import Principle

RUBRIC = "Rate how good the reply is: 1 is useless or harmful, 5 is middling, 10 could not be better."
RATING_TOKENS = 8
CHOICE_TOKENS = 4


def rating_question(rubric: str, prompt: Prompt, reply: str) -> Question:
    text = (
        f"{rubric}\n\n{_show(prompt)}\n\n[Reply]\n{reply}\n[End of the reply]\n\n"
        "Answer with one whole number from 1 to 10 and nothing else."
    )
    return Question(text, RATING_TOKENS)


def choice_question(
    principle: Principle, prompt: Prompt, first: str, second: str, *, wants_logprobs: bool
) -> Question:
    """first is shown as reply A, second as reply B."""
    text = (
        f"Compare two replies by this principle: {principle.text}\n\n{_show(prompt)}\n\n"
        f"[Reply A]\n{first}\n[End of reply A]\n\n[Reply B]\n{second}\n[End of reply B]\n\n"
        f"{principle.question} Answer with the one letter A or B and nothing else."
    )
    return Question(text, CHOICE_TOKENS, wants_logprobs)


def _show(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return f"[Beginning of a text, which the reply continues]\n{prompt}"
    turns = "\n\n".join(f"{message.role}: {message.text}" for message in prompt)
    return f"[Conversation]\n{turns}"


MIN_MASS = 0.2
"""Of the first token's probability, on A and B together; with less the judge meant to say something else."""
_LETTER = re.compile(r"\W*([AB])\W*")
_RATING = re.compile(r"\s*(10|[1-9])(?:\s*/\s*10)?[\s.]*")


def read_choice(answer: Answer) -> float:
    """Probability of A: from the first token's alternatives where there are any, else 1 or 0 by the text.

    Raises GarbageError for an answer that is neither letter.
    """
    if answer.first:
        return _soft_choice(answer)
    letter = _LETTER.fullmatch(answer.text)
    if letter is None:
        raise GarbageError(f"want A or B, got {answer.text[:40]!r}")
    return float(letter[1] == "A")


def _soft_choice(answer: Answer) -> float:
    mass = {"A": 0.0, "B": 0.0}
    for token, logprob in answer.first:
        letter = _LETTER.fullmatch(token)
        if letter is not None and math.isfinite(logprob):
            mass[letter[1]] += math.exp(logprob)
    total = mass["A"] + mass["B"]
    if total < MIN_MASS:
        raise GarbageError(
            f"A and B have {total:.0%} of the first token's probability, got {answer.text[:40]!r}"
        )
    return mass["A"] / total


def read_rating(answer: Answer) -> float:
    """A whole number from 1 to 10, and nothing else. Raises GarbageError."""
    rating = _RATING.fullmatch(answer.text)
    if rating is None:
        raise GarbageError(f"want a number from 1 to 10, got {answer.text[:40]!r}")
    return float(rating[1])
