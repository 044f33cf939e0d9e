from __future__ import annotations

import time

import pytest
import torch

from benchmarks.common import spread_of
from benchmarks.gpu.timing import Repeats, copy_bandwidth, num_copies, time_calls

CPU = torch.device("cpu")


def test_a_spread_is_median_and_tenths():
    spread = spread_of(list(range(1, 102)))
    assert (spread.median, spread.p10, spread.p90) == (51.0, 11.0, 91.0)


def test_every_set_of_inputs_takes_its_turn_and_warm_up_does_not_count(monkeypatch: pytest.MonkeyPatch):
    turns: list[str] = []
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    def call(name: str) -> None:
        nonlocal now
        now += 0.02 if len(turns) < 4 else 0.001
        turns.append(name)

    spread = time_calls(CPU, [lambda: call("a"), lambda: call("b")], Repeats(4, 6))
    assert turns == ["a", "b"] * 5
    assert (spread.p10, spread.median, spread.p90) == pytest.approx((1e3, 1e3, 1e3))


def test_two_sets_of_inputs_suffice_where_there_is_no_cache_to_defeat():
    assert num_copies(CPU, 1.0) == 2


def test_a_copy_counts_what_it_reads_and_what_it_writes(monkeypatch: pytest.MonkeyPatch):
    ticks = iter(range(1000))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))  # every call takes a second
    assert copy_bandwidth(CPU, 1000, Repeats(1, 3)) == pytest.approx(2000.0)
