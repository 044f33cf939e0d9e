"""Hidden states that the engine computes while it samples, kept for whoever trains heads on the replies."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trimtab.server.engine.scheduler import Row

Key = tuple[str, int]
"""A request's id, and the index of its choice."""


class StateRecorder:
    """Keeps h at s_0 … s_T of every reply of T tokens, the end that is put behind a cut one included. They
    stay on the device until they are collected, so that no step waits for a copy."""

    def __init__(self) -> None:
        self._steps: list[Tensor] = []
        self._num_rows = 0
        self._at: defaultdict[Key, dict[int, int]] = defaultdict(dict)

    def take(self, rows: Sequence[Row], h: Tensor) -> None:
        """rows: those of a step that h [len(rows) or more, d] is of, in order, each at its last token."""
        for place, row in enumerate(rows, start=self._num_rows):
            step = row.end - row.choice.num_prompt_tokens
            self._at[row.choice.request.request_id, row.choice.index][step] = place
        self._steps.append(h[: len(rows)].clone())  # in fewer bytes than the padded step's
        self._num_rows += len(rows)

    def collect(self, num_states: Mapping[Key, int]) -> dict[Key, Tensor]:
        """h [T+1, d] on the CPU of each reply that is asked for; all others are forgotten too.

        num_states: T + 1; what was computed past a reply's end is left out.
        """
        h = torch.cat(self._steps).cpu()
        found = {}
        for key, number in num_states.items():
            places = [self._at[key].get(step, -1) for step in range(number)]
            assert min(places) >= 0, "every position of a finished reply was computed"
            found[key] = h[places]
        self._steps, self._num_rows = [], 0
        self._at.clear()
        return found
