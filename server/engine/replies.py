"""Growing replies of a live request: text, stop strings, and sums of what was measured. No torch here."""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

from trimtab.server.engine.detokenizer import Detokenizer, TextDecoder
from trimtab.server.engine.grammar import Grammar
from trimtab.server.engine.reasoning import ReasoningFollower, Tags
from trimtab.server.engine.request import (
    ChoiceDone,
    Delta,
    FinishReason,
    GuidanceSummary,
    Request,
    Scores,
    TokenRecord,
)


@dataclass(slots=True)  # not frozen: made for every token of every row, in a third of the time
class Measured:
    """One drawn token with everything that was measured at it."""

    record: TokenRecord
    kl: float
    strength: float
    flip: bool
    value: Scores
    base_logprob: float = 0.0

    @property
    def is_finite(self) -> bool:
        is_value_finite = not self.value or all(math.isfinite(score) for _, score in self.value)
        return is_value_finite and math.isfinite(self.kl)


@dataclass(slots=True)
class Reply:
    """eos_token_ids: tokens that end any reply. stop_ids: those that the request's `stop` names. reasoning:
    follows the reply where a trace was asked for. grammar: where the reply is in it, if it is held to one.
    figures: see GuidanceSummary.rule."""

    request: Request
    index: int
    eos_token_ids: Collection[int]
    stop_ids: Collection[int]
    detokenizer: Detokenizer
    stop: StopMatcher
    reasoning: ReasoningFollower | None = None
    grammar: Grammar | None = None
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    kl: float = 0.0
    figures: Scores = ()
    _strength_sum: float = 0.0
    _flips: int = 0
    _value: Scores = ()
    _length: int = 0
    _piece: str = ""

    @property
    def ended_with_eos(self) -> bool:
        return bool(self.token_ids) and self.token_ids[-1] in self.eos_token_ids

    def push(self, measured: Measured) -> Delta:
        """Take the next token; `finish_reason` is set when it was the last one."""
        token_id = measured.record.token_id
        self.token_ids.append(token_id)
        self.kl += measured.kl
        self._strength_sum += measured.strength
        self._flips += measured.flip
        self._value = measured.value
        text, offset = self._read(token_id)
        if self.reasoning is not None and measured.record.trace is not None:
            part = self.reasoning.take(token_id, self._piece, measured.value)
            measured.record.trace = replace(measured.record.trace, part=part)
        if self.finish_reason is None and self._ends_grammar(token_id):
            self.finish_reason = "stop"
            text += self._end()
        if self.finish_reason is None and len(self.token_ids) >= self.request.sampling.max_tokens:
            self.finish_reason = "length"
            text += self._end()
        self._length += len(text)
        if self.finish_reason is not None:
            offset = min(offset, self._length)  # what follows a stop string is cut
        return Delta(self.request.request_id, self.index, text, (measured.record,), (offset,))

    def fork(self) -> Reply:
        """Another that has come as far."""
        other = copy.copy(self)
        other.token_ids = list(self.token_ids)
        other.detokenizer, other.stop = self.detokenizer.fork(), copy.copy(self.stop)
        if self.reasoning is not None:
            other.reasoning = replace(self.reasoning, steps=list(self.reasoning.steps))
        if self.grammar is not None:
            other.grammar = self.grammar.copy()
        return other

    def _read(self, token_id: int) -> tuple[str, int]:
        """The text that can be emitted now, and where in the reply's text the token begins."""
        if self._is_end(token_id):
            self.finish_reason, self._piece = "stop", ""
            text = self._end()
            return text, self._length + len(text)
        self._piece = self.detokenizer.push(token_id)
        text, has_stopped = self.stop.push(self._piece)
        pending = self.detokenizer.pending
        if not has_stopped and pending and self.stop.would_stop(pending):
            more, has_stopped = self.stop.push(self.detokenizer.flush())
            text += more
        if has_stopped:
            self.finish_reason = "stop"
        return text, self.detokenizer.offset

    def _ends_grammar(self, token_id: int) -> bool:
        """Whether nothing can follow this token but an end, which need not be drawn."""
        if self.grammar is None:
            return False
        self.grammar.take(token_id)
        return self.grammar.is_over

    def _is_end(self, token_id: int) -> bool:
        is_eos = token_id in self.eos_token_ids and not self.request.sampling.ignore_eos
        return is_eos or token_id in self.stop_ids

    def _end(self) -> str:
        """What was held back, up to a stop string in it."""
        text, has_stopped = self.stop.push(self.detokenizer.flush())
        if has_stopped:
            self.finish_reason = "stop"
        return text + self.stop.flush()

    def reject(self, num_run: int) -> ChoiceDone:
        """The reply ends here, unfinished: it fell behind."""
        self.finish_reason = "rejected"
        return self.done(num_run)

    def done(self, num_run: int, reward: Scores = ()) -> ChoiceDone:
        assert self.finish_reason is not None
        num_tokens = len(self.token_ids)
        summary = GuidanceSummary(
            kl=self.kl,
            mean_strength=self._strength_sum / num_tokens,
            value=self._value,
            reward=reward,
            flips=self._flips,
            rule=self.figures,
            steps=tuple(self.reasoning.steps) if self.reasoning else (),
        )
        return ChoiceDone(
            self.request.request_id,
            self.index,
            self.finish_reason,
            summary,
            num_tokens,
            num_run,
        )


def new_replies(
    request: Request,
    eos_token_ids: Collection[int],
    text: TextDecoder,
    tags: Tags | None = None,
    grammar: Grammar | None = None,
) -> tuple[Reply, ...]:
    """Of all choices of a request, which share what its stop strings are compiled to. tags: the model's, if
    it thinks between any. grammar: the request's, at its beginning."""
    stop = request.sampling.stop
    strings, stop_ids = StopStrings(stop), text.added_ids(stop)

    def follower() -> ReasoningFollower | None:
        if tags is None or not request.guidance.trace:
            return None
        return ReasoningFollower(tags, tags.reasons_after(request.prompt_token_ids))

    return tuple(
        Reply(
            request,
            index,
            eos_token_ids,
            stop_ids,
            text.detokenizer(request.prompt_token_ids),
            StopMatcher(strings),
            follower(),
            None if grammar is None else grammar.copy(),
        )
        for index in range(request.sampling.n)
    )


class StopMatcher:
    """Cuts one choice's text at the first stop string, holding back any end that may become one.

    Where several end at the same character, the longest is cut.
    """

    def __init__(self, strings: StopStrings | Sequence[str]) -> None:
        self._strings = strings if isinstance(strings, StopStrings) else StopStrings(strings)
        self._state, self._held = 0, ""

    def push(self, text: str) -> tuple[str, bool]:
        """(text that is safe to emit, whether a stop string was met)."""
        strings = self._strings
        if not strings:
            return text, False
        self._held += text
        for end in range(len(self._held) - len(text) + 1, len(self._held) + 1):
            self._state = strings.step(self._state, self._held[end - 1])
            if strings.matches[self._state]:
                safe, self._held = self._held[: end - strings.matches[self._state]], ""
                return safe, True
        cut = len(self._held) - strings.depths[self._state]
        safe, self._held = self._held[:cut], self._held[cut:]
        return safe, False

    def would_stop(self, text: str) -> bool:
        """Whether a stop string ends where this text would, of which all but the last character was tried."""
        return bool(self._strings) and self._strings.ends(self._held + text)

    def flush(self) -> str:
        """What was held back, once no more text can come."""
        held, self._held = self._held, ""
        return held


class StopStrings:
    """An automaton (Aho & Corasick 1975) over a request's stop strings: a character costs one step, however
    many there are.

    A state is the longest end of the text so far that a stop string begins with. depths: its length.
    matches: length of the longest stop string that the text ends with there, 0 for none.
    """

    def __init__(self, stop: Iterable[str]) -> None:
        self.stop = tuple(stop)
        self.longest = max(map(len, self.stop), default=0)
        self.depths, self.matches = [0], [0]
        self._next: list[dict[str, int]] = [{}]
        self._shorter = [0]  # the state of the next shorter end that a stop string begins with
        for text in self.stop:
            self._insert(text)
        self._link()

    def __bool__(self) -> bool:
        return bool(self.stop)

    def step(self, state: int, character: str) -> int:
        """The state after one more character."""
        while (reached := self._next[state].get(character)) is None:
            if not state:
                return 0
            state = self._shorter[state]
        return reached

    def ends(self, text: str) -> bool:
        """Whether a stop string is the end of the text."""
        state = 0
        for character in text[-self.longest :]:
            state = self.step(state, character)
        return self.matches[state] > 0

    def _insert(self, text: str) -> None:
        state = 0
        for character in text:
            if character not in self._next[state]:
                self._next[state][character] = len(self._next)
                self._next.append({})
                self._shorter.append(0)
                self.depths.append(self.depths[state] + 1)
                self.matches.append(0)
            state = self._next[state][character]
        self.matches[state] = len(text)

    def _link(self) -> None:
        """Breadth first, so that every shorter state is linked before the longer ones."""
        waiting = deque(self._next[0].values())
        while waiting:
            state = waiting.popleft()
            self.matches[state] = self.matches[state] or self.matches[self._shorter[state]]
            for character, longer in self._next[state].items():
                self._shorter[longer] = self.step(self._shorter[state], character)
                waiting.append(longer)
