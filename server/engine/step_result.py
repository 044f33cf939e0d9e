"""Step results: carry what one launched step drew and measured to the host, read back in one go."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trimtab.server.engine.device_copy import HostCopies
from trimtab.server.engine.reading import GivenToken
from trimtab.server.engine.replies import Measured
from trimtab.server.engine.request import TokenRecord, TokenTrace
from trimtab.server.engine.row_needs import RowNeeds
from trimtab.server.engine.sampler import Drawn
from trimtab.server.engine.scheduler import Row

TopTokens = tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class DrawnRows:
    """Rows that draw, what they need, and what they drew; None of no rows."""

    rows: Sequence[Row]
    needs: Sequence[RowNeeds]
    drawn: Drawn | None


@dataclass(frozen=True, slots=True)
class GivenTokens:
    """Tokens that are given, what their rows need, and what is told of them; None of no tokens."""

    tokens: Sequence[GivenToken]
    needs: Sequence[RowNeeds]
    read: Drawn | None


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """Rows and their rewards or values [R, H], in order; None of no rows."""

    rows: Sequence[Row]
    scores: Tensor | None


@dataclass(frozen=True, slots=True)
class StepResult:
    """drawn, given, judged, measured: what a step did. Tensors are on the host, and may be read once `copies`
    have arrived."""

    drawn: DrawnRows
    given: GivenTokens
    judged: ScoredRows
    measured: ScoredRows
    copies: HostCopies

    @classmethod
    def send(
        cls,
        drawn: DrawnRows,
        given: GivenTokens,
        judged: ScoredRows,
        measured: ScoredRows,
        device: torch.device,
    ) -> StepResult:
        """Queue the copies to the host behind the step, without waiting for it."""
        copies = HostCopies(device)
        if copies.are_async:
            drawn = dataclasses.replace(drawn, drawn=_add_all(copies, drawn.drawn))
            given = dataclasses.replace(given, read=_add_all(copies, given.read))
            judged, measured = (
                dataclasses.replace(rows, scores=None if rows.scores is None else copies.add(rows.scores))
                for rows in (judged, measured)
            )
        return cls(drawn, given, judged, measured, copies.seal())

    @property
    def rows(self) -> Iterator[Row]:
        """All that something is read of."""
        yield from (*self.judged.rows, *self.measured.rows, *self.drawn.rows)
        yield from (token.row for token in self.given.tokens)

    def read_rewards(self) -> Iterator[tuple[Row, list[float]]]:
        """Each judged row with its reward per loaded head, in standard units. Waits for the device."""
        return self._read_scores(self.judged)

    def read_values(self) -> Iterator[tuple[Row, list[float]]]:
        """Each measured row with its value per loaded head, in standard units. Waits for the device."""
        return self._read_scores(self.measured)

    def _read_scores(self, scored: ScoredRows) -> Iterator[tuple[Row, list[float]]]:
        if scored.scores is not None:
            self.copies.wait()
            yield from zip(scored.rows, scored.scores.tolist(), strict=True)

    def read_draws(self, head_names: Sequence[str]) -> Iterator[tuple[Row, list[Measured]]]:
        """Each drawing row with its token, and those behind its drafts. Waits for the device."""
        rows, needs, drawn = self.drawn.rows, self.drawn.needs, self.drawn.drawn
        if drawn is not None:
            self.copies.wait()
            read = iter(_measured(rows, needs, drawn, head_names))
            for _, places in itertools.groupby(rows, key=id):  # a row is there once for each token
                of_row = list(places)
                yield of_row[0], list(itertools.islice(read, len(of_row)))

    def read_given(self, head_names: Sequence[str]) -> Iterator[tuple[GivenToken, Measured]]:
        """Each token of given replies, as if it had been drawn. Waits for the device."""
        tokens, read = self.given.tokens, self.given.read
        if read is not None:
            self.copies.wait()
            rows = [token.row for token in tokens]
            yield from zip(tokens, _measured(rows, self.given.needs, read, head_names), strict=True)


def _measured(
    drawing: Sequence[Row], needs: Sequence[RowNeeds], drawn: Drawn, head_names: Sequence[str]
) -> Iterator[Measured]:
    logprobs, base_logprobs, kls, flips, *others = drawn.statistics.tolist()
    entropies = others[0] if others else None
    values = drawn.values.tolist() if drawn.values is not None else None
    strengths = drawn.strengths.tolist() if drawn.strengths is not None else None
    tops = _read_top(drawn.top_rows, drawn.top_ids, drawn.top_logprobs)
    base_tops = _read_top(drawn.traced, drawn.base_top_ids, drawn.base_top_logprobs)
    columns = (drawn.tokens.tolist(), logprobs, kls, flips)  # behind those of the rows padding's, if any
    rows = enumerate(zip(drawing, needs, *columns, strict=False))
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
        yield Measured(record, kl, strength, flip, value, base_logprobs[i])


def _add_all(copies: HostCopies, drawn: Drawn | None) -> Drawn | None:
    if drawn is None:
        return None
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
