"""Formats of calls: how models write that they call a tool, recognised by their chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from trimtab.server.api.tokens import Tokenizer


@dataclass(frozen=True, slots=True)
class CallFormat:
    """opening, closing: what stands around a call; where that is nothing, a call is the whole of a reply.
    arguments: the key that they stand under, beside `name`. special: those of the two that are special
    tokens, which a reply's text is without, by their ids."""

    name: str
    opening: str
    closing: str
    arguments: str
    special: Mapping[int, str] = field(default_factory=dict)

    @property
    def tags(self) -> tuple[str, str]:
        return self.opening, self.closing

    def write(self, tool: str, schema: str) -> str:
        """A call of this tool as an expression in Lark, every mark a terminal of its own, so that what begins
        alike is told apart where it differs. schema: the name of the arguments' grammar."""
        marks = ["{", '"name"', ":", " ", json.dumps(tool), ",", " ", json.dumps(self.arguments), ":", " "]
        after = [*(["\n", self.closing] if self.closing else [])]
        before = ["\n", *marks] if self.opening else marks
        return f"{_terminals(before)} @{schema} {_terminals(['}', *after])}"


def _terminals(texts: list[str]) -> str:
    return " ".join(json.dumps(text) for text in texts)


FORMATS: Mapping[str, CallFormat] = {
    "hermes": CallFormat("hermes", "<tool_call>", "</tool_call>", "arguments"),
    "llama3_json": CallFormat("llama3_json", "", "", "parameters"),
}
"""By vLLM's names. hermes: Hermes 2 and 3, Qwen 2.5 and 3. llama3_json: Llama 3.1 to 3.3."""


def find_format(name: str, tokenizer: Tokenizer) -> CallFormat | None:
    """The format of this name; for `auto` the one that the chat template writes calls in, or teaches. None
    where that is none of ours."""
    found = _named_by(tokenizer.chat_template) if name == "auto" else name
    if found is None:
        return None
    format = FORMATS[found]
    added = tokenizer.added_tokens_decoder.items()
    tags = {i: str(token) for i, token in added if token.special and str(token) in format.tags}
    return replace(format, special=tags)


def _named_by(template: Any) -> str | None:
    """template: a text, or several by name."""
    text = "\n".join(template.values()) if isinstance(template, dict) else str(template or "")
    if "<function=" in text:  # calls in XML, in some between the same tags
        return None
    if FORMATS["hermes"].opening in text:
        return "hermes"
    return "llama3_json" if '"name": function name, "parameters":' in text else None
