"""Validation: which of the held-out rows say when to stop training, and which then judge what came of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from trimtab.guidance.training.examples import prompt_of

MIN_TO_SPLIT = 40
"""Held-out prompts from which half of them only validate, and judge nothing."""
MAX_PROMPTS = 256
MIN_TO_STOP = 5
"""Rows, below which their loss says nothing of when to stop."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Validation:
    """prompts: whose rows validate. is_shared: they are too few to be spared, and judge as well, which
    flatters what was chosen by them."""

    prompts: frozenset[tuple[int, ...]] = frozenset()
    is_shared: bool = False

    def stopping(self, items: Sequence[T]) -> list[T]:
        """Those that say when to stop."""
        kept = [item for item in items if prompt_of(item) in self.prompts]
        return kept if len(kept) >= MIN_TO_STOP else []

    def judging(self, items: Sequence[T]) -> list[T]:
        """Those that judge a part which was stopped by the others."""
        return [item for item in items if self.is_shared or prompt_of(item) not in self.prompts]


def choose_validation(items: Sequence[Any], seed: int) -> Validation:
    """Of all held-out items: half of the prompts, at most MAX_PROMPTS; all of fewer than MIN_TO_SPLIT."""

    def rank(prompt: tuple[int, ...]) -> bytes:
        return hashlib.sha256(repr(("validation", seed, prompt)).encode()).digest()

    prompts = sorted({prompt_of(item) for item in items}, key=rank)
    if len(prompts) < MIN_TO_SPLIT:
        return Validation(frozenset(prompts), is_shared=True)
    return Validation(frozenset(prompts[: min(len(prompts) // 2, MAX_PROMPTS)]))
