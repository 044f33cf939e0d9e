from __future__ import annotations

import math

import pytest

from trimtab.guidance.controllers.entropy_gate import EntropyGate
from trimtab.guidance.errors import ControllerError


@pytest.mark.parametrize(("entropy", "is_open"), [(0.49, False), (0.5, False), (0.51, True)])
@pytest.mark.parametrize("strength", [2.0, -2.0])
def test_it_opens_above_its_entropy(limits_of, entropy, is_open, strength):
    assert float(limits_of(EntropyGate(0.5), strength, entropy=entropy).beta_max) == (2.0 if is_open else 0.0)


def test_at_0_it_closes_only_where_nothing_is_in_doubt(limits_of):
    assert float(limits_of(EntropyGate(0), entropy=1e-6).beta_max) == 2.0
    assert float(limits_of(EntropyGate(0), entropy=0.0).beta_max) == 0.0


@pytest.mark.parametrize("bad", [-1e-9, math.nan, math.inf, 101, 1e300, "1", True, None])
def test_a_gate_out_of_range_is_refused_by_name(bad):
    with pytest.raises(ControllerError, match=r"^entropy_gate: .*0…100"):
        EntropyGate(bad)
