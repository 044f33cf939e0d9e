"""Logit biases of the rows that have any, on the device: each request's pairs are read once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from trimtab.server.engine.device_copy import to_device

Pairs = tuple[tuple[int, float], ...]


class RowBias:
    """Tokens i64[E] and their biases f32[E] of every slot that was admitted with a logit_bias."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._by_slot: dict[int, tuple[Pairs, Tensor, Tensor]] = {}

    def admit(self, slot: int, pairs: Pairs) -> None:
        """Take over a slot; pairs: (token, bias) with distinct tokens, possibly none."""
        self._by_slot.pop(slot, None)
        if pairs:
            # The choices of one request share their pairs, which may be many.
            known = next((held for held in self._by_slot.values() if held[0] is pairs), None)
            self._by_slot[slot] = known or (pairs, *self._read(pairs))

    def gather(self, slots: Sequence[int], vocab_size: int) -> tuple[Tensor, Tensor] | None:
        """Places i64[E] in the flattened logits [B, V] of rows in these slots, and what to add there f32[E];
        None where no row has a bias. The host waits for nothing."""
        held = [(row, self._by_slot[slot]) for row, slot in enumerate(slots) if slot in self._by_slot]
        if not held:
            return None
        places = [tokens + row * vocab_size for row, (_, tokens, _) in held]
        return torch.cat(places), torch.cat([values for _, (_, _, values) in held])

    def _read(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        tokens = np.fromiter((token for token, _ in pairs), np.int64, len(pairs))
        values = np.fromiter((value for _, value in pairs), np.float32, len(pairs))
        return to_device(tokens, self._device), to_device(values, self._device)
