"""Step results: carry what one launched step drew and measured to the host, read back in one go."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trimtab.server.engine.device_copy import HostCopies
from trimtab.server.engine.replies import Measured
from trimtab.server.engine.request import TokenRecord, TokenTrace
from trimtab.server.engine.row_needs import RowNeeds
from trimtab.server.engine.sampler import Drawn
from trimtab.server.engine.scheduler import Row

TopTokens = tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class StepResult:
    """drawing, judging, measuring: the rows behind `drawn`, `rewards` [R, H] and `values` [M, H], in order.
    Tensors are on the host, and may be read once `copies` have arrived."""

    drawing: Sequence[Row]
    needs: Sequence[RowNeeds]
    drawn: Drawn | None
    judging: Sequence[Row]
    rewards: Tensor | None
    measuring: Sequence[Row]
    values: Tensor | None
    copies: HostCopies

    @classmethod
    def send(
        cls,
        drawing: Sequence[Row],
        needs: Sequence[RowNeeds],
        drawn: Drawn | None,
        judging: Sequence[Row],
        rewards: Tensor | None,
        measuring: Sequence[Row],
        values: Tensor | None,
        device: torch.device,
    ) -> StepResult:
        """Queue the copies to the host behind the step, without waiting for it."""
        copies = HostCopies(device)
        if copies.are_async:
            drawn = None if drawn is None else _add_all(copies, drawn)
            rewards = None if rewards is None else copies.add(rewards)
            values = None if values is None else copies.add(values)
        return cls(drawing, needs, drawn, judging, rewards, measuring, values, copies.seal())

    def read_rewards(self) -> Iterator[tuple[Row, list[float]]]:
        """Each judged row with its reward per loaded head, in standard units. Waits for the device."""
        if self.rewards is not None:
            self.copies.wait()
            yield from zip(self.judging, self.rewards.tolist(), strict=True)

    def read_values(self) -> Iterator[tuple[Row, list[float]]]:
        """Each measured row with its value per loaded head, in standard units. Waits for the device."""
        if self.values is not None:
            self.copies.wait()
            yield from zip(self.measuring, self.values.tolist(), strict=True)

    def read_draws(self, head_names: Sequence[str]) -> Iterator[tuple[Row, Measured]]:
        """Each drawing row with its token. Waits for the device."""
        drawn = self.drawn
        if drawn is None:
            return
        self.copies.wait()
        logprobs, base_logprobs, kls, flips, *others = drawn.statistics.tolist()
        entropies = others[0] if others else None
        values = drawn.values.tolist() if drawn.values is not None else None
        strengths = drawn.strengths.tolist() if drawn.strengths is not None else None
        tops = _read_top(drawn.top_rows, drawn.top_ids, drawn.top_logprobs)
        base_tops = _read_top(drawn.traced, drawn.base_top_ids, drawn.base_top_logprobs)
        columns = (drawn.tokens.tolist(), logprobs, kls, flips)  # behind those of the rows padding's, if any
        rows = enumerate(zip(self.drawing, self.needs, *columns, strict=False))
        for i, (row, need, token, logprob, kl, flips_here) in rows:
            strength = 0.0
            if need.steering or need.lookahead:
                strength = row.choice.request.guidance.strength
            if strength and need.controls:
                assert strengths is not None
                strength = strengths[i]
            value = tuple((head_names[j], values[i][j]) for j in need.measuring) if values else ()
            trace, flip = None, flips_here != 0
            if need.trace:
                assert entropies is not None
                trace = TokenTrace(value, kl, strength, entropies[i], base_logprobs[i], flip, base_tops[i])
            top = tops[i][: need.num_top] if need.num_top else ()
            record = TokenRecord(token, logprob, top, trace)
            yield row, Measured(record, kl, strength, flip, value, base_logprobs[i])


def _add_all(copies: HostCopies, drawn: Drawn) -> Drawn:
    changed: dict[str, Any] = {}
    for field in dataclasses.fields(drawn):
        value = getattr(drawn, field.name)
        if isinstance(value, Tensor):
            changed[field.name] = copies.add(value)
    return dataclasses.replace(drawn, **changed)


def _read_top(rows: Sequence[int], ids: Tensor | None, logprobs: Tensor | None) -> dict[int, TopTokens]:
    if ids is None or logprobs is None:
        return {}
    pairs = zip(ids.tolist(), logprobs.tolist(), strict=True)
    return {
        row: tuple(zip(row_ids, row_logprobs, strict=True))
        for row, (row_ids, row_logprobs) in zip(rows, pairs, strict=True)
    }
