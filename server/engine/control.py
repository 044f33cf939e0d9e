"""Strengths of controlled rows: brings together what controllers allow, and solves for what they leave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trimtab.guidance.controllers.base import Controller, RowState
from trimtab.kernels.dispatch import Backend
from trimtab.kernels.tilt import solve_tilt
from trimtab.server.engine.device_copy import index_tensor, to_device
from trimtab.server.engine.row_needs import RowNeeds


@dataclass(frozen=True, slots=True)
class _Controlled:
    """The rows i64[R] of one controller. start, max_tokens: f64[R], the lengths of their prompts and of their
    longest replies. numbers: f64[R] each, see Controller.limits."""

    kind: type[Controller]
    rows: Tensor
    start: Tensor
    max_tokens: Tensor
    numbers: Sequence[Tensor]


@dataclass(frozen=True, slots=True)
class Drawing:
    """What controllers read of B rows that draw: the strengths f32[B] that were asked for, the positions
    i64[B] that are drawn, the nats f64[B] that were spent, whether reasoning is drawn, bool[B], and
    the values f32[B, H], None where none is measured. entropy: nats f32[B] of the base; None where no
    controller reads it. kept: f32[B], log of the base's mass on the tokens that rules have left; None for all
    of it. z: f32[B, V] of the base on these, advantage f32[G, V] and advantage_row i64[B], see solve_tilt."""

    strength: Tensor
    positions: Tensor
    spent: Tensor
    reasons: Tensor
    values: Tensor | None
    entropy: Tensor | None
    kept: Tensor | None
    z: Tensor
    advantage: Tensor
    advantage_row: Tensor


class Control:
    """The controllers of rows that draw together."""

    def __init__(
        self,
        controlled: Mapping[type[Controller], Sequence[int]],
        needs: Sequence[RowNeeds],
        device: torch.device,
    ) -> None:
        self._controllers = [_on_device(kind, rows, needs, device) for kind, rows in controlled.items()]
        self.reads_entropy = any(kind.READS_ENTROPY for kind in controlled)

    def strength(self, drawing: Drawing, backend: Backend | None = None) -> Tensor:
        """β f32[B] of every row, as it was asked for where none controls it. The host waits for nothing that
        the draw does not wait for. backend: see `choose_backend`."""
        beta_max = drawing.strength.abs()
        kl_cap, lift = torch.full_like(beta_max, torch.inf), torch.full_like(beta_max, torch.inf)
        is_capped = False
        for each in self._controllers:
            limits = each.kind.limits(each.numbers, _state(each, drawing))
            _lower(beta_max, each.rows, limits.beta_max)
            _lower(kl_cap, each.rows, limits.kl_cap)
            _lower(lift, each.rows, limits.lift)
            is_capped |= limits.kl_cap is not None or limits.lift is not None
        strength = beta_max.copysign(drawing.strength)
        if not is_capped:
            return strength
        if drawing.kept is not None:  # a tilt within what is left has less to spend
            kl_cap += drawing.kept
        return solve_tilt(
            drawing.z,
            drawing.advantage,
            drawing.advantage_row,
            strength=strength,
            kl_cap=kl_cap,
            lift=lift,
            backend=backend,
        )


def _on_device(
    kind: type[Controller], rows: Sequence[int], needs: Sequence[RowNeeds], device: torch.device
) -> _Controlled:
    columns = np.array([needs[row].controls[kind] for row in rows], dtype=np.float64).T
    start, max_tokens, *numbers = to_device(np.ascontiguousarray(columns), device).unbind()
    return _Controlled(kind, index_tensor(rows, device), start, max_tokens, numbers)


def _state(each: _Controlled, drawing: Drawing) -> RowState:
    def pick(of_all: Tensor) -> Tensor:
        return of_all.index_select(0, each.rows)

    num_drawn = pick(drawing.positions) - each.start
    return RowState(
        strength=pick(drawing.strength).double(),
        num_drawn=num_drawn,
        num_left=each.max_tokens - num_drawn,
        spent=pick(drawing.spent),
        values=None if drawing.values is None else pick(drawing.values),
        entropy=None if drawing.entropy is None else pick(drawing.entropy),
        reasons=pick(drawing.reasons) if each.kind.READS_PART else None,
    )


def _lower(of_all: Tensor, rows: Tensor, limit: Tensor | None) -> None:
    if limit is not None:
        of_all.index_copy_(0, rows, of_all.index_select(0, rows).minimum(limit.to(of_all.dtype)))
