"""Messages: hold what a policy is asked, a string or a conversation."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
EXTRA_JSON = "extra_json"
"""A message's further keys as one JSON object, in our own Parquet files."""
_TEMPLATE_ROLE = {"developer": "system"}  # OpenAI's newer word, which few templates know


def template_role(role: str) -> str:
    """What a chat template is told in place of a role."""
    return _TEMPLATE_ROLE.get(role, role)


@dataclass(frozen=True, slots=True)
class Message:
    """content: None where the message calls tools and says nothing. extras: every other key with its value as
    JSON, in the order of the file, for the chat template to read."""

    role: str
    content: str | None
    extras: tuple[tuple[str, str], ...] = ()

    @property
    def text(self) -> str:
        return self.content or ""

    def to_dict(self) -> dict[str, Any]:
        """As it stands in a file."""
        return {"role": self.role, "content": self.content, **self.keys()}

    def turn(self) -> dict[str, Any]:
        """As a chat template takes it."""
        return {**self.to_dict(), "role": template_role(self.role)}

    def keys(self) -> dict[str, Any]:
        """The other keys and their values."""
        return {key: json.loads(value) for key, value in self.extras}


Prompt = str | tuple[Message, ...]
