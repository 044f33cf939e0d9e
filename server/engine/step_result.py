"""What one launched step drew and measured; read back in one go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from trimtab.server.engine.reply import Measured
from trimtab.server.engine.request import TokenRecord, TokenTrace
from trimtab.server.engine.row_needs import RowNeeds
from trimtab.server.engine.sampler import Drawn
from trimtab.server.engine.scheduler import Row

TopTokens = tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class StepResult:
    """drawing, judging: the rows behind `drawn` and `rewards` [R, H], in order."""

    drawing: Sequence[Row]
    needs: Sequence[RowNeeds]
    drawn: Drawn | None
    judging: Sequence[Row]
    rewards: Tensor | None

    def read_rewards(self) -> Iterator[tuple[Row, list[float]]]:
        """Each judged row with its reward per loaded head, in standard units."""
        if self.rewards is not None:
            yield from zip(self.judging, self.rewards.tolist(), strict=True)

    def read_draws(self, head_names: Sequence[str]) -> Iterator[tuple[Row, Measured]]:
        """Each drawing row with its token. This is where the host waits for the device."""
        if self.drawn is None:
            return
        draw = self.drawn.draw
        tokens, logprobs = draw.token.tolist(), draw.logprob.tolist()
        base_logprobs, kls, flips = draw.base_logprob.tolist(), draw.kl.tolist(), draw.flip.tolist()
        entropies = draw.entropy.tolist() if draw.entropy is not None else None
        values = self.drawn.values.tolist() if self.drawn.values is not None else None
        tops = _read_top(self.drawn.top_rows, self.drawn.top_ids, self.drawn.top_logprobs)
        base_tops = _read_top(self.drawn.traced, self.drawn.base_top_ids, self.drawn.base_top_logprobs)
        for i, (row, need) in enumerate(zip(self.drawing, self.needs, strict=True)):
            strength = row.choice.request.guidance.strength if need.steering else 0.0
            value = tuple((head_names[j], values[i][j]) for j in need.measuring) if values else ()
            trace = None
            if need.trace:
                assert entropies is not None
                trace = TokenTrace(
                    value, kls[i], strength, entropies[i], base_logprobs[i], flips[i], base_tops[i]
                )
            record = TokenRecord(tokens[i], logprobs[i], tops.get(i, ())[: need.num_top], trace)
            yield row, Measured(record, kls[i], strength, flips[i], value)


def _read_top(rows: Sequence[int], ids: Tensor | None, logprobs: Tensor | None) -> dict[int, TopTokens]:
    if ids is None or logprobs is None:
        return {}
    pairs = zip(ids.tolist(), logprobs.tolist(), strict=True)
    return {
        row: tuple(zip(row_ids, row_logprobs, strict=True))
        for row, (row_ids, row_logprobs) in zip(rows, pairs, strict=True)
    }
