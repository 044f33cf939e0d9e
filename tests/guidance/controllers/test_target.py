from __future__ import annotations

import math
from dataclasses import replace

import pytest

from trimtab.guidance.controllers.base import HeadFacts
from trimtab.guidance.controllers.target import Target
from trimtab.guidance.errors import ControllerError

GOOD = HeadFacts(0, 1.0, True, 0.5)


@pytest.mark.parametrize(
    ("head", "where", "lift"),
    [
        # missing / tokens ahead / u, with u = 0.5 of `kind`: 1.5 / 16 / 0.5
        ("kind", {"value": -0.5}, 1.5 / 16 / 0.5),
        ("kind", {"value": -0.5, "left": 3}, 1.5 / 3 / 0.5),
        ("kind", {"value": 1.0}, 0.0),
        ("kind", {"value": 1.5}, 0.0),
        # steered down, values are held from above
        ("kind", {"value": 1.5, "strength": -2.0}, 0.5 / 16 / 0.5),
        ("kind", {"value": 0.5, "strength": -2.0}, 0.0),
        # of weight −2 and u = 0.1: |w| / u = 20, and a positive strength steers its value, −value, down
        ("brief", {"value": -1.5}, 0.5 / 16 * 20),
        ("brief", {"value": -0.5}, 0.0),
        ("brief", {"value": 0.5, "strength": -2.0}, 1.5 / 16 * 20),
    ],
)
def test_the_lift_is_what_is_missing_over_the_tokens_ahead(limits_of, head, where, lift):
    assert float(limits_of(Target(head, 1.0), **where).lift) == pytest.approx(lift, rel=1e-6)


def test_a_longer_horizon_takes_smaller_steps(limits_of):
    assert float(limits_of(Target("kind", 1.0, horizon=32)).lift) == pytest.approx(1.0 / 32 / 0.5)


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({}, "no such head; loaded heads: none"),
        ({"other": GOOD}, "no such head; loaded heads: other"),
        ({"kind": replace(GOOD, has_value=False)}, "no value"),
        ({"kind": replace(GOOD, value_per_advantage=None)}, "value_per_advantage was not measured"),
        ({"kind": replace(GOOD, value_per_advantage=0.0)}, "value_per_advantage is 0, not above 0"),
        ({"kind": replace(GOOD, value_per_advantage=-0.5)}, "value_per_advantage is -0.5"),
        ({"kind": replace(GOOD, weight=0.0)}, "give it a weight in guidance.heads"),
    ],
)
def test_a_head_that_cannot_hold_a_target_is_refused_with_the_reason(facts, says):
    Target("kind", 1.0).check({"kind": GOOD})
    with pytest.raises(ControllerError) as error:
        Target("kind", 1.0).check(facts)
    assert error.value.key == "target.head"
    assert says in error.value.problem


@pytest.mark.parametrize(
    ("key", "settings"),
    [
        ("target.head", (None, 1.0)),
        ("target.head", (3, 1.0)),
        *(("target.value", ("kind", bad)) for bad in (math.nan, math.inf, -101, 1e300, "1", True, None)),
        *(("horizon", ("kind", 1.0, bad)) for bad in (0, 4097, 1.5, "1", True)),
    ],
)
def test_settings_out_of_range_are_refused_by_name(key, settings):
    with pytest.raises(ControllerError) as error:
        Target(*settings)
    assert error.value.key == key
