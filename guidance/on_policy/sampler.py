"""What writes the replies that an on-policy loss learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from trimtab.guidance.examples import PromptItem
from trimtab.guidance.head import Head
from trimtab.guidance.items import RolloutItem


@dataclass(frozen=True, slots=True)
class Draw:
    """A reply to the prompts' prompt-th. problem: why the scorer gave it no reward."""

    prompt: int
    rollout: RolloutItem
    problem: str = ""


class Sampler(Protocol):
    @property
    def is_scoring(self) -> bool:
        """Whether draws come with rewards; else the head's own reward part gives them."""
        ...

    def sample(
        self, head: Head, strength: float, prompts: Sequence[PromptItem], num_replies: int, seed: int
    ) -> list[Draw]:
        """Replies of the policy as the head's advantage tilts it at `strength`, at temperature 1; the same
        ones for the same arguments. In the prompts' order, num_replies to each."""
        ...
