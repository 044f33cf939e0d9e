"""The part of a reply that is steered."""

from __future__ import annotations

import pytest

from trimtab.guidance.controllers.on import On
from trimtab.guidance.errors import ControllerError


@pytest.mark.parametrize(
    ("part", "reasons", "beta_max"),
    [
        ("all", False, 2.0),
        ("all", True, 2.0),
        ("reasoning", True, 2.0),
        ("reasoning", False, 0.0),
        ("answer", True, 0.0),
        ("answer", False, 2.0),
    ],
)
def test_strength_is_left_in_the_part_alone(limits_of, part: str, reasons: bool, beta_max: float):
    for strength in (2.0, -2.0):
        assert float(limits_of(On(part), strength, reasons=reasons).beta_max) == beta_max


def test_a_model_without_tags_can_be_steered_as_a_whole_only():
    On("all").check_model(can_reason=False)
    On("answer").check_model(can_reason=True)
    for part in ("reasoning", "answer"):
        with pytest.raises(ControllerError, match="tags"):
            On(part).check_model(can_reason=False)
