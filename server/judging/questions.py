"""The words in which a judge is asked."""

from __future__ import annotations

from trimtab.guidance.text.message import Prompt
from trimtab.server.judging.answers import Question
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
