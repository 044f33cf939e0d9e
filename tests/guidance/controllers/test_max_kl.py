from __future__ import annotations

import math

import pytest

from trimtab.guidance.controllers.base import Limits
from trimtab.guidance.controllers.max_kl import MaxKL
from trimtab.guidance.errors import ControllerError


def test_it_caps_every_token_alike(limits_of):
    for where in ({}, {"drawn": 7, "spent": 9.0}):
        limits = limits_of(MaxKL(0.25), **where)
        assert float(limits.kl_cap) == 0.25
        assert limits == Limits(kl_cap=limits.kl_cap)


@pytest.mark.parametrize("bad", [0, -1, math.nan, math.inf, 1e300, "1", True, None, 10**400])
def test_a_cap_out_of_range_is_refused_by_name(bad):
    with pytest.raises(ControllerError, match=r"^max_kl: .*above 0") as error:
        MaxKL(bad)
    assert len(str(error.value)) < 200
