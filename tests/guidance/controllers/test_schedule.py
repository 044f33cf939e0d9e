from __future__ import annotations

import math

import pytest

from trimtab.guidance.controllers.schedule import Schedule
from trimtab.guidance.errors import ControllerError


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        (Schedule("constant"), [1, 1, 1, 1, 1, 1]),
        (Schedule("warmup", 4), [0.25, 0.5, 0.75, 1, 1, 1]),
        (Schedule("warmup", 1), [1, 1, 1, 1, 1, 1]),
        (Schedule("decay", 4), [1, 0.75, 0.5, 0.25, 0, 0]),
        (Schedule("decay", 3), [1, pytest.approx(2 / 3), pytest.approx(1 / 3), 0, 0, 0]),
    ],
    ids=str,
)
@pytest.mark.parametrize("strength", [2.0, -2.0])
def test_it_scales_the_strength_by_the_tokens_drawn(limits_of, schedule, shares, strength):
    got = [float(limits_of(schedule, strength, drawn=t).beta_max) / 2 for t in range(6)]
    assert got == shares


@pytest.mark.parametrize(
    ("key", "settings"),
    [
        ("schedule.kind", ("cosine", 3)),
        ("schedule.kind", (None, 3)),
        ("schedule.kind", (["warmup"], 3)),
        ("schedule.tokens", ("warmup", None)),
        ("schedule.tokens", ("constant", 3)),
        *(("schedule.tokens", ("decay", bad)) for bad in (0, -1, 1.5, "3", True, 2**31, 10**400, math.nan)),
    ],
)
def test_settings_out_of_range_are_refused_by_name(key, settings):
    with pytest.raises(ControllerError) as error:
        Schedule(*settings)
    assert error.value.key == key
    assert len(str(error.value)) < 200
