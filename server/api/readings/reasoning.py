"""Reasoning apart from the answer: splits replies of models that think between tags, whole or streamed."""

from __future__ import annotations

from collections import deque
from copy import copy
from dataclasses import dataclass, field, replace
from itertools import takewhile

from trimtab.server.api.tokens import Tokenizer
from trimtab.server.engine.reasoning import Tags, find_tags
from trimtab.server.engine.request import Completion, Delta, TokenRecord


@dataclass(frozen=True, slots=True)
class ReasoningTags:
    """A model's tags, and how many characters of the text each is: none where it is a special token."""

    tags: Tags
    lengths: dict[int, int]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> ReasoningTags | None:
        """None of a model that does not think between tags which are known."""
        added = tokenizer.added_tokens_decoder
        tags = find_tags(added)
        if tags is None:
            return None
        ids = (tags.opening, tags.closing)
        return cls(tags, {i: 0 if added[i].special else len(str(added[i])) for i in ids})


@dataclass(slots=True)
class ReasoningSplitter:
    """Of one choice. reasons: whether its text goes on with reasoning. num_tokens: of reasoning, so far.

    Text comes behind the tokens that it is of, so that it is known where a tag is before its text is there.
    Places count characters of the whole text, tags included.
    """

    known: ReasoningTags
    reasons: bool
    num_tokens: int = 0
    _token_reasons: bool = field(init=False)
    _end: int = 0  # of the text so far
    _begin: int = 0  # of what counts: behind the last tag
    _tags: deque[tuple[int, int]] = field(default_factory=deque)  # places and ids of those still to come
    _answers: list[tuple[int, int]] = field(
        default_factory=list
    )  # places where it goes on, and its length there
    _length: int = 0  # of the answer

    def __post_init__(self) -> None:
        self._token_reasons = self.reasons
        self._answers.append((0, 0))

    def split(self, event: Delta) -> tuple[str, Delta]:
        """What is new of the reasoning, and of the answer, with its tokens and their places in it."""
        places = self._take_tokens(event)
        start, self._end = self._end, self._end + len(event.text)
        said = {True: "", False: ""}
        self._begin = max(self._begin, start)

        def say(end: int) -> None:
            text = event.text[self._begin - start : max(end - start, 0)]
            said[self.reasons] += text
            self._length += 0 if self.reasons else len(text)

        while self._tags and self._tags[0][0] <= self._end:
            place, token_id = self._tags.popleft()
            say(place)
            self.reasons = token_id == self.known.tags.opening
            self._begin = place + self.known.lengths[token_id]
            self._answers.append((self._begin, self._length))
        say(self._end)
        tokens = tuple(token for token, _ in places)
        offsets = tuple(self._in_answer(place) for _, place in places)
        return said[True], replace(event, text=said[False], tokens=tokens, offsets=offsets)

    def _take_tokens(self, event: Delta) -> list[tuple[TokenRecord, int]]:
        """Those of the answer, with their places."""
        tags, found = self.known.tags, []
        for token, place in zip(event.tokens, event.offsets, strict=True):
            if token.token_id in (tags.opening, tags.closing):
                self._tags.append((place, token.token_id))
                self._token_reasons = token.token_id == tags.opening
            elif self._token_reasons:
                self.num_tokens += 1
            else:
                found.append((token, place))
        return found

    def _in_answer(self, place: int) -> int:
        """Where in the answer a place of it is, which may lie behind tags that the text has not come to."""
        start, length = next(span for span in reversed(self._answers) if span[0] <= place)
        if place > self._end and self._tags:
            start, length, reasons = max(self._end, self._begin), self._length, self.reasons
            for at, token_id in takewhile(lambda tag: tag[0] <= place, self._tags):
                length += 0 if reasons else at - start
                start, reasons = at + self.known.lengths[token_id], token_id == self.known.tags.opening
        return length + place - start

    def whole(self, completion: Completion) -> tuple[str, Completion]:
        """The same of a reply that is there."""
        event = Delta("", 0, completion.text, tuple(completion.tokens), tuple(completion.offsets))
        reasoning, answer = self.split(event)
        said = copy(completion)
        said.text, said.tokens, said.offsets = answer.text, list(answer.tokens), list(answer.offsets)
        return reasoning, said
