"""The bundled model's judge as a gold score: of prompts as data files hold them."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.guidance.bundled import judge

Messages = Sequence[dict[str, str]]


def score(prompt: str | Messages, reply: str) -> dict[str, float | None]:
    """kindness, concision and harmlessness by name, None where the judge cannot say. Of a conversation it
    reads the users' words."""
    if not isinstance(prompt, str):
        prompt = "\n".join(message["content"] for message in prompt if message["role"] == "user")
    return judge.score(prompt, reply)
