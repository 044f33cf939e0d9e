"""Rejection of choices that fall behind: ranks a request's choices at checkpoints by their values.

No torch here.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from trimtab.server.engine.lane import Choice, Phase
from trimtab.server.engine.request import Rejection, Scores


@dataclass(slots=True)
class Race:
    """The choices of one request. Who goes on depends on the values at the checkpoints alone, not on which
    choice came to one first."""

    rule: Rejection
    choices: Sequence[Choice]
    _scores: defaultdict[int, dict[int, float]] = field(default_factory=lambda: defaultdict(dict))
    _num_rejected: int = 0

    def take(self, choice: Choice, num_tokens: int, value: Scores) -> None:
        """A choice has drawn its num_tokens-th token, before which this was measured, and goes on."""
        if num_tokens % self.rule.every == 0:
            measured = dict(value)
            score = sum(weight * measured[head] for head, weight in self.rule.weights)
            self._scores[num_tokens // self.rule.every][choice.index] = score

    def behind(self) -> list[Choice]:
        """Whom the earliest checkpoint leaves behind that all who still run have come to."""
        running = [c for c in self.choices if c.phase is not Phase.DONE and not c.is_finishing]
        for checkpoint, scores in sorted(self._scores.items()):
            if any(choice.index not in scores for choice in running):
                return []
            del self._scores[checkpoint]
            num_ended = len(self.choices) - len(running) - self._num_rejected
            num_kept = max(math.ceil(self.rule.share * len(running)), self.rule.keep - num_ended, 0)
            ranked = sorted(running, key=lambda c: scores[c.index], reverse=True)
            if ranked[num_kept:]:
                self._num_rejected += len(ranked) - num_kept
                return ranked[num_kept:]
        return []
