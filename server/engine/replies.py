"""One choice's reply as it grows: text, stop conditions, sums of what was measured. No torch here."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field

from trimtab.server.engine.detokenizer import Detokenizer
from trimtab.server.engine.request import (
    ChoiceDone,
    Delta,
    FinishReason,
    GuidanceSummary,
    Request,
    TokenRecord,
)
from trimtab.server.engine.stop_strings import StopMatcher, StopStrings
from trimtab.server.engine.text_decoder import TextDecoder

Scores = tuple[tuple[str, float], ...]


@dataclass(slots=True)  # not frozen: made for every token of every row, in a third of the time
class Measured:
    """One drawn token with everything that was measured at it."""

    record: TokenRecord
    kl: float
    strength: float
    flip: bool
    value: Scores

    @property
    def is_finite(self) -> bool:
        is_value_finite = not self.value or all(math.isfinite(score) for _, score in self.value)
        return is_value_finite and math.isfinite(self.kl)


@dataclass(slots=True)
class Reply:
    """eos_token_ids: tokens that end any reply. stop_ids: those that the request's `stop` names."""

    request: Request
    index: int
    eos_token_ids: Collection[int]
    stop_ids: Collection[int]
    detokenizer: Detokenizer
    stop: StopMatcher
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    kl: float = 0.0
    _strength_sum: float = 0.0
    _flips: int = 0
    _value: Scores = ()
    _length: int = 0

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
        if self.finish_reason is None and len(self.token_ids) >= self.request.sampling.max_tokens:
            self.finish_reason = "length"
            text += self._end()
        self._length += len(text)
        if self.finish_reason is not None:
            offset = min(offset, self._length)  # what follows a stop string is cut
        return Delta(self.request.request_id, self.index, text, (measured.record,), (offset,))

    def _read(self, token_id: int) -> tuple[str, int]:
        """The text that can be emitted now, and where in the reply's text the token begins."""
        if self._is_end(token_id):
            self.finish_reason = "stop"
            text = self._end()
            return text, self._length + len(text)
        text, has_stopped = self.stop.push(self.detokenizer.push(token_id))
        pending = self.detokenizer.pending
        if not has_stopped and pending and self.stop.would_stop(pending):
            more, has_stopped = self.stop.push(self.detokenizer.flush())
            text += more
        if has_stopped:
            self.finish_reason = "stop"
        return text, self.detokenizer.offset

    def _is_end(self, token_id: int) -> bool:
        is_eos = token_id in self.eos_token_ids and not self.request.sampling.ignore_eos
        return is_eos or token_id in self.stop_ids

    def _end(self) -> str:
        """What was held back, up to a stop string in it."""
        text, has_stopped = self.stop.push(self.detokenizer.flush())
        if has_stopped:
            self.finish_reason = "stop"
        return text + self.stop.flush()

    def done(self, reward: Scores = ()) -> ChoiceDone:
        assert self.finish_reason is not None
        num_tokens = len(self.token_ids)
        summary = GuidanceSummary(
            kl=self.kl,
            mean_strength=self._strength_sum / num_tokens,
            value=self._value,
            reward=reward,
            flips=self._flips,
        )
        return ChoiceDone(self.request.request_id, self.index, self.finish_reason, summary, num_tokens)


def new_replies(request: Request, eos_token_ids: Collection[int], text: TextDecoder) -> tuple[Reply, ...]:
    """Of all choices of a request, which share what its stop strings are compiled to."""
    stop = request.sampling.stop
    strings, stop_ids = StopStrings(stop), text.added_ids(stop)
    return tuple(
        Reply(
            request,
            index,
            eos_token_ids,
            stop_ids,
            text.detokenizer(request.prompt_token_ids),
            StopMatcher(strings),
        )
        for index in range(request.sampling.n)
    )
