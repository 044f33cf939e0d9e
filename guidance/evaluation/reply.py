"""What the harness needs to know of a sampled reply, whoever sampled it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reply:
    """kl: nats over the reply, of the tilt from the base. finish_reason: "stop" or "length"."""

    prompt: str
    text: str
    token_ids: tuple[int, ...]
    kl: float
    finish_reason: str


Heads = tuple[tuple[str, float], ...]
"""(name, weight) pairs."""

Sample = Callable[[Sequence[str], Heads, float], list[Reply]]
"""(prompts, heads, strength) -> one or more replies per prompt, in any order."""

Score = Callable[[str, str], dict[str, float | None]]
"""(prompt, reply) -> scores by name; None where the judge cannot say."""
