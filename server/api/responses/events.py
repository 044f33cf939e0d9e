"""Events of a response: writes it item by item, as OpenAI's typed events and as what they add up to."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from trimtab.server.api.errors import ApiError

Json = dict[str, Any]
PART_TYPES = {"message": "output_text", "reasoning": "reasoning_text"}
_FIELDS: dict[str, Json] = {"message": {"role": "assistant"}, "reasoning": {"summary": []}}
_ID_PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc"}


@dataclass(slots=True)
class _OpenItem:
    """The last item, which still grows: as it began, and the pieces of its text or arguments since, with the
    log-probabilities of a message's tokens."""

    began: Json
    pieces: list[str] = field(default_factory=list)
    logprobs: list[Json] = field(default_factory=list)

    def ended(self, status: str) -> Json:
        """The item with all of its text."""
        text = "".join(self.pieces)
        if (part_type := PART_TYPES.get(self.began["type"])) is None:
            return {**self.began, "status": status, "arguments": text}
        return {**self.began, "status": status, "content": [part(part_type, text, self.logprobs)]}


def part(part_type: str, text: str, logprobs: Sequence[Json] = ()) -> Json:
    """Of an item's content."""
    found: Json = {"type": part_type, "text": text}
    return found | ({"annotations": [], "logprobs": [*logprobs]} if part_type == "output_text" else {})


class ResponseWriter:
    """One response. Of the events' methods `opening` is called first, and one of `closing` and `failed` last.

    Events come in the order in which their text was drawn; `closing` and `failed` end in the one event that
    ends a response.
    """

    def __init__(self, frame: Json) -> None:
        """frame: the response but for what it says, and how it ended."""
        self._frame = {**frame, "error": None, "incomplete_details": None, "usage": None}
        self._output: list[Json] = []
        self._open: _OpenItem | None = None
        self._num_events = 0
        self._trace: list[Json] = []
        self._untold_trace: list[Json] = []
        self._untold_logprobs: list[Json] = []

    def opening(self) -> Iterator[Json]:
        """Before anything is drawn."""
        yield self._event("response.created", response=self._response("in_progress"))
        yield self._event("response.in_progress", response=self._response("in_progress"))

    def take(self, choice: Json) -> Iterator[Json]:
        """A choice as a chat's stream has it; traces go with the next event that has new text."""
        trace = choice.get("guidance", {}).get("trace", ())
        self._trace.extend(trace)
        self._untold_trace.extend(trace)
        said = choice["delta"]
        calls = said.get("tool_calls", ())
        if said.get("content") or not calls:  # a call's tokens are not told
            self._untold_logprobs.extend((choice.get("logprobs") or {}).get("content") or ())
        for call in calls:  # the rest of a call comes before what follows it
            if "id" not in call:
                yield from self._arguments(call)
        for kind, name in (("reasoning", "reasoning_content"), ("message", "content")):
            if said.get(name):
                yield from self._text(kind, said[name])
        for call in calls:
            if "id" in call:
                name = call["function"]["name"]
                yield from self._begin("function_call", call_id=call["id"], name=name, arguments="")
                yield from self._arguments(call)

    def closing(self, choice: Json, usage: Json) -> Iterator[Json]:
        """choice: the last of a chat's stream. A reply that says nothing is an empty message."""
        yield from self.take(choice)
        if self._open is None:
            yield from self._begin("message")
        is_cut = choice["finish_reason"] == "length"
        status = "incomplete" if is_cut else "completed"
        yield from self._end(status)
        guidance = choice["guidance"] | ({"trace": self._trace} if self._trace else {})
        more: Json = {"usage": usage, "guidance": guidance}
        if is_cut:
            more["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            more["completed_at"] = int(time.time())
        yield self._event(f"response.{status}", response=self._response(status) | more)

    def failed(self, error: ApiError) -> Json:
        """The event that ends it, with what was said so far."""
        if self._open is not None:
            self._output.append(self._open.ended("incomplete"))
        told: Json = {"code": "server_error", "message": error.body["error"]["message"]}
        return self._event("response.failed", response=self._response("failed") | {"error": told})

    def _text(self, kind: str, text: str) -> Iterator[Json]:
        if self._open is None or self._open.began["type"] != kind:
            yield from self._begin(kind)
        assert self._open is not None
        more = {"logprobs": self._tell_logprobs(self._open)} if kind == "message" else {}
        yield self._delta(f"response.{PART_TYPES[kind]}.delta", text, **more)

    def _tell_logprobs(self, item: _OpenItem) -> list[Json]:
        """Those that have not been told, as the item's."""
        told, self._untold_logprobs = self._untold_logprobs, []
        item.logprobs.extend(told)
        return told

    def _arguments(self, call: Json) -> Iterator[Json]:
        if text := call["function"]["arguments"]:
            yield self._delta("response.function_call_arguments.delta", text)

    def _begin(self, kind: str, **fields: Any) -> Iterator[Json]:
        if kind == "function_call":
            self._untold_logprobs = []
        yield from self._end("completed")
        item_id = f"{_ID_PREFIXES[kind]}_{uuid.uuid4().hex}"
        item: Json = {"id": item_id, "type": kind, "status": "in_progress", **fields}
        if kind in PART_TYPES:
            item |= {"content": [], **_FIELDS[kind]}
        self._open = _OpenItem(item)
        yield self._event("response.output_item.added", output_index=len(self._output), item=item)
        if kind in PART_TYPES:
            empty = part(PART_TYPES[kind], "")
            yield self._event("response.content_part.added", **self._where, part=empty)

    def _end(self, status: str) -> Iterator[Json]:
        """Of the item that is open, if any."""
        if self._open is None:
            return
        if self._open.began["type"] == "message":
            self._tell_logprobs(self._open)
        item = self._open.ended(status)
        kind, where = item["type"], self._where
        if kind in PART_TYPES:
            [whole] = item["content"]
            told = {name: whole[name] for name in ("text", "logprobs") if name in whole}
            yield self._event(f"response.{PART_TYPES[kind]}.done", **where, **told)
            yield self._event("response.content_part.done", **where, part=whole)
        else:
            told = {name: item[name] for name in ("name", "arguments")}
            yield self._event("response.function_call_arguments.done", **where, **told)
        yield self._event("response.output_item.done", output_index=len(self._output), item=item)
        self._output.append(item)
        self._open = None

    @property
    def _where(self) -> Json:
        assert self._open is not None
        where: Json = {"item_id": self._open.began["id"], "output_index": len(self._output)}
        return where | ({"content_index": 0} if self._open.began["type"] in PART_TYPES else {})

    def _delta(self, event: str, text: str, **more: Any) -> Json:
        assert self._open is not None
        self._open.pieces.append(text)
        if self._untold_trace:
            more["guidance"] = {"trace": self._untold_trace}
            self._untold_trace = []
        return self._event(event, **self._where, **more, delta=text)

    def _event(self, kind: str, **fields: Any) -> Json:
        self._num_events += 1
        return {"type": kind, "sequence_number": self._num_events - 1, **fields}

    def _response(self, status: str) -> Json:
        return {**self._frame, "status": status, "output": [*self._output]}
