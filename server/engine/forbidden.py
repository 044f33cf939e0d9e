"""Forbidden tokens: masks for replies that may not end yet, or not say some words. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from trimtab.server.engine.request import SamplingParams


@dataclass(frozen=True, slots=True)
class Forbidden:
    """Of one request. ends: the tokens that would end its replies."""

    sampling: SamplingParams
    ends: tuple[int, ...]
    vocab_size: int

    def mask(self, num_drawn: int, token_ids: Sequence[int]) -> np.ndarray:
        """i32[⌈V/32⌉], see `apply_token_mask`: what may come after num_drawn tokens. token_ids: they, where
        words are forbidden, else as many of them as are known."""
        bad = [word[-1] for word in self.sampling.bad_words if _ends_with(token_ids, word[:-1])]
        if num_drawn < self.sampling.min_tokens:
            bad.extend(self.ends)
        return _all_but(bad, self.vocab_size)


def _ends_with(tokens: Sequence[int], end: Sequence[int]) -> bool:
    return not end or tuple(tokens[-len(end) :]) == tuple(end)


def _all_but(tokens: Iterable[int], vocab_size: int) -> np.ndarray:
    words = np.full(-(-vocab_size // 32), -1, np.int32)
    for token in tokens:
        words.view(np.uint32)[token // 32] &= ~np.uint32(1 << token % 32)
    return words
