from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from trimtab.guidance.controllers.base import Controller, HeadFacts, Limits, RowState

HEADS = {"kind": HeadFacts(1, 1.0, True, 0.5), "brief": HeadFacts(0, -2.0, True, 0.1)}


@pytest.fixture
def limits_of() -> Callable[..., Limits]:
    """Limits of one row with this controller. value: V(s) of `kind`; `brief` has its negative."""

    def limits(
        controller: Controller,
        strength: float = 2.0,
        drawn: int = 0,
        left: int = 100,
        spent: float = 0.0,
        value: float = 0.0,
        entropy: float = 1.0,
        reasons: bool = False,
    ) -> Limits:
        scalars = (strength, drawn, left, spent)
        columns = [torch.tensor([float(x)], dtype=torch.float64) for x in scalars]
        values, entropies = torch.tensor([[-value, value]]), torch.tensor([entropy])
        numbers = [torch.tensor([x], dtype=torch.float64) for x in controller.numbers(HEADS)]
        return controller.limits(
            numbers, RowState(*columns, values=values, entropy=entropies, reasons=torch.tensor([reasons]))
        )

    return limits
