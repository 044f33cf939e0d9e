"""What the evaluation needs to know of a sampled reply, whoever sampled it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Reply:
    """prompt: its index among the prompts. sample: its number among the prompt's replies; replies of the same
    prompt and sample have the same random numbers at every setting.
    kl: nats over the reply, of what was sampled from to the base.
    flips: tokens at which the two preferred different ones. logprob, base_logprob: of the drawn tokens under
    the two, summed; nan where it was not measured. rewards: by head, in standard units.
    finish_reason: "stop" or "length"."""

    prompt: int
    text: str
    token_ids: tuple[int, ...]
    kl: float
    finish_reason: str
    flips: int = 0
    logprob: float = math.nan
    base_logprob: float = math.nan
    rewards: dict[str, float] = field(default_factory=dict)
    sample: int = 0


Heads = tuple[tuple[str, float], ...]
"""(name, weight) pairs."""

Scores = dict[str, list[float | None]]
"""By the name of the score, one per reply; None where the judge could not say."""

Score = Callable[[Sequence[Reply]], Scores]
"""The same names every time."""

Sample = Callable[[Heads, float], list[Reply]]
"""(heads, strength) -> one or more replies to each prompt, in the order of the prompts."""
