"""Calls read from a reply as it grows: its words, the tools it calls, and their arguments piece by piece."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trimtab.server.api.tools.formats import CallFormat
from trimtab.server.engine.request import TokenRecord

_SPACE = r"\s{0,32}"  # bounded, as names are, so that a reply costs no more than its length
_HEADER = re.compile(
    r' \{ "name" : ("(?:[^"\\]|\\.){1,64}") , "(?:arguments|parameters)" : (?=\{)'.replace(" ", _SPACE)
)
_MARK = re.compile(r'["\\{}\[\]]')
_ARGUMENTS = ("arguments", "parameters")


@dataclass(frozen=True, slots=True)
class Words:
    """Text that is no call."""

    text: str


@dataclass(frozen=True, slots=True)
class Call:
    """The index-th call of a reply begins."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """A piece of a call's arguments, which are JSON."""

    index: int
    text: str


Part = Words | Call | Arguments


class CallReader:
    """Of one choice. What `push` and a last `finish` return are the same parts however the text is cut, but
    for where words and arguments are.

    A call has the name of a tool that was offered, and an object for its arguments; whatever else stands in
    the place of one is words. Arguments are passed on as they are written, up to the end of their object, or
    of the reply. White space between words and calls is neither's.
    """

    def __init__(self, format: CallFormat, tools: Collection[str], *, max_calls: int | None = None) -> None:
        """tools: names. max_calls: what follows so many is left out."""
        self._format, self._tools, self._max_calls = format, tools, max_calls
        self._state: Literal["words", "call", "arguments", "closing", "over"] = "words"
        self._text = ""  # that is not yet told
        self._end = _ObjectEnd()
        self._space = ""  # between words and what may be a call
        self._has_spoken = False
        self._is_within = False  # the object that holds name and arguments
        self.num_calls = 0

    def push(self, text: str) -> list[Part]:
        """What is certain since this text."""
        self._text += text
        return list(self._read(is_last=False))

    def finish(self) -> list[Part]:
        """What was held back, once no more text can come."""
        return list(self._read(is_last=True))

    def _read(self, *, is_last: bool) -> Iterator[Part]:
        steps = {
            "words": self._words,
            "call": self._call,
            "arguments": self._arguments,
            "closing": self._closing,
        }
        while self._state != "over":
            before = self._state, len(self._text)
            yield from steps[self._state](is_last)
            if (self._state, len(self._text)) == before:
                return
        self._text = ""

    def _words(self, is_last: bool) -> Iterator[Part]:
        """Up to where a call opens, or may."""
        if self.num_calls and not self._has_spoken:
            self._text = self._text.lstrip()
        start, opening = self._find_opening(is_last)
        words = self._text[:start].rstrip()
        space = self._text[len(words) : start]
        if words:
            self._has_spoken = True
            yield Words(words)
        if opening is not None:
            self._space, self._end = space, _ObjectEnd()
            self._text, self._state = self._text[start + opening :], "call"
        elif not is_last:
            self._text = space + self._text[start:]
        else:
            self._text = ""
            if space and not self.num_calls:
                yield Words(space)

    def _find_opening(self, is_last: bool) -> tuple[int, int | None]:
        """Where words end for now, and how long the opening is that follows; None where none does yet."""
        text, opening = self._text, self._format.opening
        if not opening:  # only a reply that begins so calls
            start = len(text) - len(text.lstrip())
            is_call = text[start : start + 1] == "{" and not self._has_spoken
            return (start, 0) if is_call else (len(text), None)
        if (start := text.find(opening)) >= 0:
            return start, len(opening)
        return len(text) if is_last else len(text) - _overlap(text, opening), None

    def _call(self, is_last: bool) -> Iterator[Part]:
        """A call's name, once it is there, or the whole of a call that is written in another order."""
        if (header := _HEADER.match(self._text)) and (name := _load(header[1])) in self._tools:
            self._text, self._end = self._text[header.end() :], _ObjectEnd()
            self._state, self._is_within = "arguments", True
            yield Call(self.num_calls, name)
            self.num_calls += 1
            return
        is_object = self._text.lstrip()[:1] in ("", "{", "[")
        end = self._end.find(self._text) if is_object else 0
        if end is None and not is_last:
            return
        whole = self._text[:end]
        self._text = self._text[len(whole) :]
        calls = _calls_in(whole, self._tools)
        if not calls:
            yield Words(self._space + self._format.opening + whole)
            self._has_spoken, self._state = True, "words"
            return
        self._state = "closing"
        for name, arguments in calls[: self._num_left]:
            yield from (Call(self.num_calls, name), Arguments(self.num_calls, arguments))
            self.num_calls += 1

    def _arguments(self, is_last: bool) -> Iterator[Part]:
        end = self._end.find(self._text)
        piece = self._text if end is None else self._text[:end]
        if piece:
            yield Arguments(self.num_calls - 1, piece)
        self._text = self._text[len(piece) :]
        if end is None:
            self._end.moved(len(piece))
        else:
            self._state, self._end = "closing", _ObjectEnd(depth=1)

    def _closing(self, is_last: bool) -> Iterator[Part]:
        """What closes a call is left out, whether it is there or not."""
        if self._num_left == 0:
            self._state = "over"
            return
        if self._is_within and (self._text.lstrip()[:1] in ("", "}", ",")):
            end = self._end.find(self._text)
            self._is_within = end is None
            self._text = self._text[end:] if end is not None else "" if is_last else self._text
            return
        self._is_within = False
        text, closing = self._text.lstrip(), self._format.closing or ";"
        if text == closing or not closing.startswith(text):
            self._text, self._state = text.removeprefix(closing), "words"
        else:
            self._text = "" if is_last else text
        yield from ()

    @property
    def _num_left(self) -> int | None:
        """Calls that may still come; None for any number."""
        return None if self._max_calls is None else self._max_calls - self.num_calls


class _ObjectEnd:
    """Where the first bracket of a text that grows is closed, brackets in strings left out."""

    def __init__(self, depth: int = 0) -> None:
        """depth: brackets that are open before the text."""
        self._at, self._depth = 0, depth
        self._in_string = False

    def find(self, text: str) -> int | None:
        """Behind the closing bracket. text: what was there before, and more."""
        while (mark := _MARK.search(text, self._at)) is not None:
            self._at = mark.end()
            match mark[0]:
                case "\\" if self._in_string:
                    self._at += 1  # the next is no mark, though it be still to come
                case '"':
                    self._in_string = not self._in_string
                case "{" | "[" if not self._in_string:
                    self._depth += 1
                case "}" | "]" if not self._in_string:
                    self._depth -= 1
                    if self._depth <= 0:
                        return self._at
        self._at = max(self._at, len(text))
        return None

    def moved(self, length: int) -> None:
        """So much of the text's beginning is gone."""
        self._at -= length


def _overlap(text: str, opening: str) -> int:
    """Characters at the end of the text that the opening begins with."""
    longest = min(len(text), len(opening) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(opening[:size])), 0)


def _load(text: str) -> Any:
    """None for what is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _calls_in(text: str, tools: Collection[str]) -> list[tuple[str, str]]:
    """Names and arguments of a call, or a list of calls, whose keys come in any order; none where one is not
    a call."""
    value = _load(text)
    found = [_call_of(one, tools) for one in (value if isinstance(value, list) else [value])]
    return [] if None in found else [call for call in found if call is not None]


def _call_of(value: Any, tools: Collection[str]) -> tuple[str, str] | None:
    name = value.get("name") if isinstance(value, dict) else None
    if not isinstance(name, str) or name not in tools:
        return None
    arguments: Any = next((value[key] for key in _ARGUMENTS if key in value), {})
    if isinstance(arguments, str) and isinstance(_load(arguments), dict):
        return name, arguments
    return (name, json.dumps(arguments, ensure_ascii=False)) if isinstance(arguments, dict) else None


class TagWriter:
    """Puts back the tags that are special tokens, which a reply's text is without."""

    def __init__(self, tags: Mapping[int, str]) -> None:
        """tags: the text of each such token."""
        self._tags = tags
        self._waiting: deque[tuple[int, str]] = deque()
        self._length = 0

    def push(self, text: str, tokens: Sequence[TokenRecord], offsets: Sequence[int]) -> str:
        """The text with its tags. offsets: see Delta."""
        for token, offset in zip(tokens, offsets, strict=True):
            if token.token_id in self._tags:
                self._waiting.append((offset, self._tags[token.token_id]))
        pieces, start = [], 0
        while self._waiting and self._waiting[0][0] <= self._length + len(text):
            offset, tag = self._waiting.popleft()
            end = max(start, offset - self._length)
            pieces += [text[start:end], tag]
            start = end
        self._length += len(text)
        return "".join([*pieces, text[start:]])
