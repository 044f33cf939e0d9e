"""Questions to a judge, its answers, and a file that keeps them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class GarbageError(ValueError):
    """An answer that does not say what was asked."""


@dataclass(frozen=True, slots=True)
class Question:
    """One user message. wants_logprobs: of the first token's alternatives."""

    text: str
    max_tokens: int
    wants_logprobs: bool = False

    def body(self, model: str) -> dict[str, Any]:
        """Of the request, greedy so that the same question has the same answer."""
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": self.text}],
            "max_tokens": self.max_tokens,
            "temperature": 0,
        }
        if model:
            body["model"] = model
        if self.wants_logprobs:
            body |= {"logprobs": True, "top_logprobs": 20}
        return body


@dataclass(frozen=True, slots=True)
class Answer:
    """first: tokens that might have come first, with log-probabilities; empty where the judge gives none."""

    text: str
    first: tuple[tuple[str, float], ...] = ()


def read_answer(data: Any) -> Answer:
    """From the JSON of a chat completion. Raises GarbageError for anything else."""
    try:
        choice = data["choices"][0]
        text = choice["message"]["content"]
        content = (choice.get("logprobs") or {}).get("content") or [{}]
        first = tuple((str(t["token"]), float(t["logprob"])) for t in content[0].get("top_logprobs") or [])
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise GarbageError("the server's answer is no chat completion") from error
    if not isinstance(text, str):
        raise GarbageError("the judge answered no text")
    return Answer(text, first)


def question_key(url: str, body: dict[str, Any]) -> str:
    """SHA-256 over where and what was asked."""
    return hashlib.sha256(json.dumps([url, body], sort_keys=True).encode()).hexdigest()


@dataclass(slots=True)
class AnswerFile:
    """Good answers by question key, a JSON line each, so that a run that was killed goes on from there."""

    path: Path
    _answers: dict[str, Answer] = field(init=False)

    def __post_init__(self) -> None:
        self._answers = {}
        if not self.path.is_file():
            return
        whole, _, torn = self.path.read_bytes().rpartition(b"\n")
        for line in whole.splitlines():
            entry = json.loads(line)
            first = tuple((token, logprob) for token, logprob in entry["first"])
            self._answers[entry["key"]] = Answer(entry["text"], first)
        if torn:  # killed within a line
            with self.path.open("r+b") as file:
                file.truncate(len(whole) + bool(whole))

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> Answer | None:
        return self._answers.get(key)

    def put(self, key: str, answer: Answer) -> None:
        self._answers[key] = answer
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "text": answer.text, "first": answer.first}) + "\n")
