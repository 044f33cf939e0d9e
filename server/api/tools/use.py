"""Use of tools in one chat: which may be called, whether they must be, and what grammar a reply keeps to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trimtab.server.api.requests import write_grammar
from trimtab.server.api.schemas.chats import ChatRequest
from trimtab.server.api.schemas.tools import ToolFields
from trimtab.server.api.tools.choice import ToolChoiceReader
from trimtab.server.api.tools.formats import CallFormat
from trimtab.server.api.tools.reading import CallReader, TagWriter
from trimtab.server.engine.request import GrammarSpec, InvalidRequestError

ANY_OBJECT = {"type": "object"}
NO_FORMAT = (
    "this model's chat template shows no format of calls that is known here; start the server with "
    "--tool-call-parser hermes or llama3_json"
)
_REPLY = "reply"
_TEXT = r"/(.|\n)*/"
_NO_OBJECT = r"/[ \t\r\n]*([^ \t\r\n{](.|\n)*)?/"


@dataclass(frozen=True, slots=True)
class ToolUse:
    """offered: what the chat template is given. callable: those that may be called, each with its place in
    the request. must: a reply is a call. max_calls: None for any number."""

    format: CallFormat
    offered: tuple[ToolFields, ...]
    callable: tuple[tuple[int, ToolFields], ...]
    must: bool
    max_calls: int | None

    @property
    def templated(self) -> list[dict[str, Any]]:
        """As chat templates take them."""
        return [tool.templated for tool in self.offered]

    def reader(self) -> ToolChoiceReader:
        """Of one choice."""
        names = {tool.function.name for _, tool in self.callable}
        calls = CallReader(self.format, names, max_calls=self.max_calls)
        return ToolChoiceReader(calls, TagWriter(self.format.special))

    def grammar(self, reply: GrammarSpec | None) -> GrammarSpec | None:
        """What a reply is held to. Arguments keep to their tool's schema where a call is demanded and where
        the tool is `strict`; else they are an object. None where all is free.

        reply: what the request holds text to, which a call is an alternative to.
        Raises InvalidRequestError where that is no JSON schema, or all is too long.
        """
        if not (self.must or reply or any(tool.function.strict for _, tool in self.callable)):
            return None
        if reply is not None and reply.kind != "json_schema":
            what = "leaves no room for calls; give a JSON schema, or tool_choice none"
            raise InvalidRequestError(what, reply.param)
        schemas: list[tuple[str, str, Any]] = [
            (f"s{at}", f"tools[{at}].function.parameters", self._schema(tool)) for at, tool in self.callable
        ]
        if reply is not None and not self.must:
            schemas.append((_REPLY, reply.param, _read_schema(reply)))
        written = {"lark": self._lark(has_schema=reply is not None), "schemas": schemas}
        return GrammarSpec("lark_over_schemas", write_grammar(written, "tools"), "tools")

    def _schema(self, tool: ToolFields) -> Mapping[str, Any]:
        return tool.schema_ if self.must or tool.function.strict else ANY_OBJECT

    def _lark(self, *, has_schema: bool) -> str:
        format = self.format
        calls = " | ".join(format.write(tool.function.name, f"s{at}") for at, tool in self.callable)
        opening = json.dumps(format.opening)
        one = f"{opening} call" if format.opening else "call"
        several = one if self.max_calls == 1 or not format.opening else f'{one} ("\\n" {one})*'
        rules = [f"call: {calls}"]
        if self.must:
            rules.append(f"start: {several}")
        elif has_schema:
            rules.append(f"start: {several} | @{_REPLY}")
        elif format.opening:  # wherever a call opens, and not before
            start = "TEXT | called" if self.max_calls == 1 else "called* TEXT"
            rules += [f"start: {start}", "called: opening call", f"opening[lazy]: TEXT {opening}"]
            rules.append(f"TEXT: {_TEXT}")
        else:
            rules += ["start: call | TEXT", f"TEXT: {_NO_OBJECT}"]
        return "\n".join(rules)


def _read_schema(reply: GrammarSpec) -> Any:
    try:
        return json.loads(reply.text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"is no JSON: {error}", reply.param) from error


def tool_use(body: ChatRequest, format: CallFormat | None) -> ToolUse | None:
    """What the request says of tools; None where no reply may call any, and the template is not told of them.

    Raises InvalidRequestError where tools may be called and the format is not known.
    """
    choice = body.tool_choice
    if not body.tools or (choice is not None and choice.type == "none"):
        return None
    if format is None:
        raise InvalidRequestError(NO_FORMAT, "tools")
    numbered = tuple(enumerate(body.tools))
    names = None if choice is None else choice.names
    may_be_called = tuple(one for one in numbered if names is None or one[1].function.name in names)
    is_one = choice is not None and choice.type == "function"
    max_calls = 1 if is_one or body.parallel_tool_calls is False else None
    must = choice is not None and choice.demands
    return ToolUse(format, tuple(body.tools), may_be_called, must, max_calls)
