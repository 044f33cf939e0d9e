"""One choice's reply as it grows: text, stop conditions, sums of what was measured. No torch here."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from trimtab.server.engine.detokenizer import NUM_CONTEXT_TOKENS, Decode, Detokenizer, StopMatcher
from trimtab.server.engine.request import (
    ChoiceDone,
    Delta,
    FinishReason,
    GuidanceSummary,
    Request,
    TokenRecord,
)

Scores = tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Measured:
    """One drawn token with everything that was measured at it."""

    record: TokenRecord
    kl: float
    strength: float
    flip: bool
    value: Scores


@dataclass(slots=True)
class Reply:
    request: Request
    index: int
    eos_token_ids: Collection[int]
    decode: Decode
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    kl: float = 0.0
    _strength_sum: float = 0.0
    _flips: int = 0
    _value: Scores = ()
    _detokenizer: Detokenizer = field(init=False)
    _stop: StopMatcher = field(init=False)

    def __post_init__(self) -> None:
        context = self.request.prompt_token_ids[-NUM_CONTEXT_TOKENS:]
        self._detokenizer = Detokenizer(self.decode, context)
        self._stop = StopMatcher(self.request.sampling.stop)

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
        text = self._read(token_id)
        if self.finish_reason is None and len(self.token_ids) >= self.request.sampling.max_tokens:
            self.finish_reason = "length"
            text += self._stop.flush()
        return Delta(self.request.request_id, self.index, text, (measured.record,))

    def _read(self, token_id: int) -> str:
        if token_id in self.eos_token_ids and not self.request.sampling.ignore_eos:
            self.finish_reason = "stop"
            return self._stop.flush()
        text, has_stopped = self._stop.push(self._detokenizer.push(token_id))
        if has_stopped:
            self.finish_reason = "stop"
        return text

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
