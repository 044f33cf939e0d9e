"""Prompt lookup: drafts the next tokens of a reply from where its last ones stand earlier in its text.

A. Saxena, "Prompt lookup decoding", 2023. Edits, extracts and code repeat what they were given; whatever is
drafted is verified, so that a wrong draft costs the rows that it was run in. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

DRAFTS = {4: 7, 3: 5, 2: 3, 1: 2}
"""By how many tokens match, the most telling first, how many may be drafted: a wrong draft costs a seventh of
a step, and behind one or two tokens that match more of them are."""
MAX_DRAFTS = max(DRAFTS.values())
MAX_ROWS = 16
"""A step of so many rows is hardly slower than one of a single row: weights are read once for all of them."""


def num_drafts(num_rows: int) -> int:
    """How many each of so many rows that are run together may have."""
    return max(min(MAX_DRAFTS, MAX_ROWS // max(num_rows, 1) - 1), 0)


@dataclass(slots=True)
class PromptLookup:
    """Of one lane. ends: by n-gram, where what follows its latest occurrence begins."""

    ends: dict[tuple[int, ...], int] = field(default_factory=dict)
    num_known: int = 0

    def draft(self, tokens: Sequence[int], most: int) -> tuple[int, ...]:
        """At most so many tokens that may follow. tokens: the lane's, to which some may have been added since
        the last call; never fewer or others."""
        self._learn(tokens)
        for size, telling in DRAFTS.items():
            at = self.ends.get(tuple(tokens[-size:])) if len(tokens) > size else None
            if at is not None:
                return tuple(tokens[at : at + min(most, telling)])
        return ()

    def _learn(self, tokens: Sequence[int]) -> None:
        """Enter every n-gram that something follows."""
        for end in range(max(self.num_known, 1), len(tokens)):
            for size in DRAFTS:
                if end >= size:
                    self.ends[tuple(tokens[end - size : end])] = end
        self.num_known = len(tokens)
