"""Plain data that crosses the engine's door: requests in, events out.

Nothing here holds a tensor, a future or a callback, so the door could become a process boundary by
adding a transport and nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

MAX_STRENGTH = 10.0
MAX_LOGPROBS = 20
MAX_CHOICES = 128
FinishReason = Literal["stop", "length"]


class InvalidRequestError(ValueError):
    """A request that can never be served as asked. `param` names the field, the message the fix."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class EngineUnavailableError(RuntimeError):
    """The engine is still loading, or has died; the message says which and why."""


def _check(ok: bool, param: str, message: str) -> None:
    if not ok:
        raise InvalidRequestError(f"{param}: {message}", param)


def _in_range(x: float, low: float, high: float) -> bool:
    return math.isfinite(x) and low <= x <= high


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn. On a row: logit_bias, penalties, guidance, temperature, min_p, top_k, top_p.

    temperature: 0 is greedy (argmax of the guided logits, lowest id on a tie).
    top_k: 0 keeps the whole vocabulary.
    seed: None asks the engine to draw one.
    logprobs: None for none; k reports the drawn token's log-probability and the k most likely ones.
    stop: strings that end the reply and are removed from it.
    """

    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    n: int = 1
    logprobs: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        _check(self.max_tokens >= 1, "max_tokens", f"must be at least 1, got {self.max_tokens}")
        _check(_in_range(self.temperature, 0, 100), "temperature", f"must be 0…100, got {self.temperature}")
        _check(0 < self.top_p <= 1, "top_p", f"must be above 0 and at most 1, got {self.top_p}")
        _check(self.top_k >= 0, "top_k", f"must be 0 (off) or more, got {self.top_k}")
        _check(_in_range(self.min_p, 0, 1), "min_p", f"must be 0…1, got {self.min_p}")
        if self.seed is not None:
            _check(-(2**63) <= self.seed < 2**63, "seed", f"must fit in 64 bits, got {self.seed}")
        _check(1 <= self.n <= MAX_CHOICES, "n", f"must be 1…{MAX_CHOICES}, got {self.n}")
        _check(all(self.stop), "stop", "must not contain an empty string")
        if self.logprobs is not None:
            _check(0 <= self.logprobs <= MAX_LOGPROBS, "top_logprobs", f"must be 0…{MAX_LOGPROBS}")
        for token, bias in self.logit_bias:
            _check(_in_range(bias, -100, 100), "logit_bias", f"token {token} must be -100…100, got {bias}")
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            _check(_in_range(value, -2, 2), name, f"must be -2…2, got {value}")
        _check(
            math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0,
            "repetition_penalty",
            f"must be above 0, got {self.repetition_penalty}",
        )

    @property
    def has_penalties(self) -> bool:
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1.0)

    @property
    def truncates(self) -> bool:
        return self.temperature > 0 and (self.top_p < 1 or self.top_k > 0 or self.min_p > 0)


@dataclass(frozen=True, slots=True)
class Guidance:
    """Which heads steer, how hard. Strength 0 measures the named heads and steers nothing."""

    strength: float = 0.0
    heads: tuple[tuple[str, float], ...] = ()
    trace: bool = False

    def __post_init__(self) -> None:
        _check(
            _in_range(self.strength, -MAX_STRENGTH, MAX_STRENGTH),
            "guidance.strength",
            f"must be a number in -{MAX_STRENGTH:g}…{MAX_STRENGTH:g}, got {self.strength}",
        )
        for name, weight in self.heads:
            _check(
                _in_range(weight, -MAX_STRENGTH, MAX_STRENGTH),
                f"guidance.heads.{name}",
                f"must be a number in -{MAX_STRENGTH:g}…{MAX_STRENGTH:g}, got {weight}",
            )
        names = [name for name, _ in self.heads]
        _check(len(set(names)) == len(names), "guidance.heads", "names a head twice")


@dataclass(frozen=True, slots=True)
class Request:
    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    guidance: Guidance = field(default_factory=Guidance)


@dataclass(frozen=True, slots=True)
class TokenTrace:
    """What was measured and done at one token, all before temperature and truncation.

    value: per head, in standard units of the policy's own replies, before this token.
    kl: nats of the tilt from the base. entropy: nats of the base.
    base_top: the three tokens the base preferred, with log-probabilities.
    """

    value: tuple[tuple[str, float], ...]
    kl: float
    strength: float
    entropy: float
    base_logprob: float
    flip: bool
    base_top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """One drawn token. logprob and top_logprobs are of the tilt, before temperature and truncation."""

    token_id: int
    logprob: float
    top_logprobs: tuple[tuple[int, float], ...] = ()
    trace: TokenTrace | None = None


@dataclass(frozen=True, slots=True)
class GuidanceSummary:
    """Of one choice. kl: nats over the reply. value, reward: per named head, in standard units; a head
    without the part has no entry. flips: tokens at which the tilt's argmax differed from the base's."""

    kl: float
    mean_strength: float
    value: tuple[tuple[str, float], ...]
    reward: tuple[tuple[str, float], ...]
    flips: int


@dataclass(frozen=True, slots=True)
class Delta:
    """New text of one choice (possibly empty: half a character, or text that may become a stop string)
    with the tokens drawn since its last delta."""

    request_id: str
    index: int
    text: str
    tokens: tuple[TokenRecord, ...]


@dataclass(frozen=True, slots=True)
class ChoiceDone:
    """One choice has ended; the request goes on until its last choice has. Not a terminal event."""

    request_id: str
    index: int
    finish_reason: FinishReason
    summary: GuidanceSummary
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Finished:
    """Terminal: every choice has ended."""

    request_id: str
    num_prompt_tokens: int
    num_cached_tokens: int
    num_completion_tokens: int


@dataclass(frozen=True, slots=True)
class Aborted:
    """Terminal: `abort` was called."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Failed:
    """Terminal: the engine could not go on with this request; the message says why."""

    request_id: str
    message: str


Event = Delta | ChoiceDone | Finished | Aborted | Failed
TERMINAL = (Finished, Aborted, Failed)
