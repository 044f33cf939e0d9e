"""Registry: format's name → how its rows are recognised and read, and what one looks like."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trimtab.guidance.data.formats import comparison, conversation, instruction, pairs, replies, transcript
from trimtab.guidance.data.formats.exchange import Exchange
from trimtab.guidance.data.formats.read import ReadRow

TRL, AUTO = "trl", "auto"
"""Our own columns, which are TRL's; and whichever format the rows turn out to have."""


@dataclass(frozen=True, slots=True)
class Format:
    """title: what people call it. looks_like: whether a row, of whatever kind, has this format.
    read: the row as an exchange; with True transcripts stay text. examples: a row of each shape."""

    title: str
    looks_like: Callable[[Mapping[str, Any]], bool]
    read: Callable[[ReadRow, bool], Exchange]
    examples: tuple[Mapping[str, Any], ...]


def _said(text: str, role: str = "assistant") -> dict[str, str]:
    return {"role": role, "content": text}


def _from(text: str, speaker: str = "gpt") -> dict[str, str]:
    return {"from": speaker, "value": text}


_TALK = "\n\nHuman: Hello?\n\nAssistant:"

FORMATS: dict[str, Format] = {
    "sharegpt": Format(
        "ShareGPT",
        conversation.looks_like_sharegpt,
        conversation.read,
        (
            {"conversations": [_from("Hello?", "human")], "chosen": _from("Hi!"), "rejected": _from("No.")},
            {"conversations": [_from("Hello?", "human"), _from("Hi!")], "kto_tag": True},
        ),
    ),
    "messages": Format(
        "messages",
        conversation.looks_like_messages,
        conversation.read,
        (
            {"messages": [_said("Hello?", "user"), _said("Hi!")], "label": True},
            {"messages": [_said("Hello?", "user")], "chosen": _said("Hi!"), "rejected": _said("No.")},
        ),
    ),
    "hh": Format(
        "an HH transcript",
        transcript.looks_like,
        transcript.read,
        (
            {"chosen": f"{_TALK} Hi!", "rejected": f"{_TALK} No."},
            {"prompt": _TALK, "chosen": " Hi!", "rejected": " No."},
        ),
    ),
    "ultrafeedback": Format(
        "UltraFeedback (whole conversations)",
        pairs.looks_like,
        pairs.read,
        (
            {
                "prompt": "Hello?",
                "chosen": [_said("Hello?", "user"), _said("Hi!")],
                "rejected": [_said("Hello?", "user"), _said("No.")],
                "score_chosen": 8.0,
                "score_rejected": 5.0,
            },
        ),
    ),
    "replies": Format(
        "a list of judged replies",
        replies.looks_like,
        replies.read,
        (
            {"prompt": "Hello?", "answers": [{"answer": "Hi!", "rank": 1}, {"answer": "No.", "rank": 2}]},
            {
                "instruction": "Hello?",
                "completions": [
                    {"response": "Hi!", "overall_score": 8.0},
                    {"response": "No.", "overall_score": 5.0},
                ],
            },
            {
                "question": "2 + 2?",
                "small": {"solution": "A: 5", "is_correct": False},
                "large": {"solution": "A: 4", "is_correct": True},
            },
        ),
    ),
    "comparison": Format(
        "two replies and a verdict",
        comparison.looks_like,
        comparison.read,
        (
            {
                "question": {"full_text": "Hello?"},
                "answer_0": "Hi!",
                "score_0": 1.0,
                "answer_1": "No.",
                "score_1": -1.0,
            },
            {"question": "Hello?", "answer_a": "Hi!", "answer_b": "No.", "grade": "A much better"},
            {"prompt": "Hello?", "response_0": "No.", "response_1": "Hi!", "better_response_id": 1},
        ),
    ),
    "alpaca": Format(
        "Alpaca",
        instruction.looks_like_alpaca,
        instruction.read,
        (
            {"instruction": "Greet.", "input": "Ann", "output": "Hi Ann!"},
            {"instruction": "Greet.", "chosen": "Hi!", "rejected": "No."},
        ),
    ),
    "question": Format(
        "a question and its answers",
        instruction.looks_like_question,
        instruction.read,
        (
            {"question": "2 + 2?", "answer": "4"},
            {"system": "Be brief.", "question": "Hello?", "chosen": "Hi!", "rejected": "No."},
        ),
    ),
}
