from __future__ import annotations

import math

import pytest

from trimtab.guidance.controllers.kl_budget import KEPT_BACK, USABLE, KLBudget
from trimtab.guidance.errors import ControllerError


@pytest.mark.parametrize(
    ("where", "spread"),
    [
        ({"left": 100}, 32),  # the horizon, while more tokens are ahead
        ({"left": 100, "spent": 1.5}, 32),
        ({"left": 5, "spent": 1.5}, 5),  # what is left of the reply
        ({"left": 1}, 1),
    ],
)
def test_what_is_left_is_spread_over_the_tokens_ahead(limits_of, where, spread):
    left = (4.0 - where.get("spent", 0.0)) * USABLE - KEPT_BACK
    assert float(limits_of(KLBudget(4.0), **where).kl_cap) == pytest.approx(left / spread, rel=1e-12)


def test_a_short_horizon_spends_early(limits_of):
    assert limits_of(KLBudget(4.0, horizon=2)).kl_cap == 16 * limits_of(KLBudget(4.0)).kl_cap


@pytest.mark.parametrize("spent", [4.0, 4.0 - KEPT_BACK / 2, 5.0])
def test_a_spent_budget_leaves_nothing(limits_of, spent):
    assert float(limits_of(KLBudget(4.0), spent=spent).kl_cap) == 0


@pytest.mark.parametrize("bad", [0, -1, math.nan, math.inf, 1e300, "1", True, None])
def test_a_budget_out_of_range_is_refused_by_name(bad):
    with pytest.raises(ControllerError, match=r"^kl_budget: .*above 0"):
        KLBudget(bad)


@pytest.mark.parametrize("bad", [0, -1, 4097, 2.5, "8", True, math.nan, 10**400])
def test_a_horizon_out_of_range_is_refused_by_name(bad):
    with pytest.raises(ControllerError, match=r"^horizon: .*1…4096"):
        KLBudget(1.0, bad)
