"""Choice of a chat that may call tools: its messages and deltas as OpenAI writes them."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from trimtab.server.api.tools.reading import Arguments, Call, CallReader, Part, TagWriter, Words
from trimtab.server.engine.request import Completion, Delta, FinishReason

Json = dict[str, Any]


class ToolChoiceReader:
    """Of one choice, whole or streamed."""

    def __init__(self, calls: CallReader, tags: TagWriter) -> None:
        self._calls, self._tags = calls, tags

    def message(self, completion: Completion) -> Json:
        """`content` and `tool_calls` of a whole reply; no words are null."""
        text = self._tags.push(completion.text, completion.tokens, completion.offsets)
        parts = [*self._calls.push(text), *self._calls.finish()]
        content = "".join(part.text for part in parts if isinstance(part, Words))
        calls = [_begun(part) for part in parts if isinstance(part, Call)]
        for part in parts:
            if isinstance(part, Arguments):
                calls[part.index]["function"]["arguments"] += part.text
        if not calls:
            return {"content": content}
        return {"content": content or None, "tool_calls": calls}

    def delta(self, event: Delta) -> Json:
        """What is new; empty where nothing is certain yet. A call comes with its id and name first, and the
        pieces of its arguments."""
        return _delta(self._calls.push(self._tags.push(event.text, event.tokens, event.offsets)))

    def last_delta(self) -> Json:
        """What was held back."""
        return _delta(self._calls.finish())

    def finish_reason(self, reason: FinishReason) -> str:
        """Once all is read."""
        return "tool_calls" if reason == "stop" and self._calls.num_calls else reason


def _begun(call: Call) -> Json:
    function = {"name": call.name, "arguments": ""}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def _delta(parts: Sequence[Part]) -> Json:
    content, calls = "", dict[int, Json]()
    for part in parts:
        match part:
            case Words():
                content += part.text
            case Call():
                calls[part.index] = {"index": part.index, **_begun(part)}
            case Arguments():
                call = calls.setdefault(part.index, {"index": part.index, "function": {"arguments": ""}})
                call["function"]["arguments"] += part.text
    return ({"content": content} if content else {}) | ({"tool_calls": [*calls.values()]} if calls else {})
