from __future__ import annotations

import math

import pytest
import torch

from benchmarks.common import Spread
from benchmarks.gpu.findings import Aim, Findings, Measurement


def test_the_worst_of_several_numbers_under_one_name_counts():
    findings = Findings()
    for value in (0.1, 0.7, 0.3):
        findings.require("error", value, 0.5)
    assert findings.broken == ["error: 0.7, at most 0.5"]


@pytest.mark.parametrize("order", [(math.nan, 0.1), (0.1, math.nan)])
def test_a_nan_is_never_within_a_limit(order: tuple[float, float]):
    findings = Findings()
    for value in order:
        findings.require("error", torch.tensor([value]), 0.5)
    assert len(findings.broken) == 1


def test_a_missed_aim_is_news_and_no_error():
    findings = Findings()
    findings.aims.append(Aim("guided / plain", 0.9, at_least=0.97))
    assert not findings.broken
    assert findings.as_dict()["aims"][0]["is_reached"] is False
    assert Aim("", 1.0, at_most=1.02).is_reached
    assert not Aim("", math.nan, at_most=1.02).is_reached


def test_ratios_are_to_the_floor_and_to_each_of_the_others():
    ours, theirs = Spread(20.0, 19.0, 22.0), Spread(40.0, 39.0, 41.0)
    found = Measurement("op", "shape", 8, ours, 16.0, {"torch": theirs}).as_dict()
    assert found["of_floor"] == 0.8
    assert found["against"]["torch"]["ratio"] == 0.5
    assert found["microseconds"] == {"median": 20.0, "p10": 19.0, "p90": 22.0}
