"""What only runs where there is a GPU, on a stand-in for torch.cuda."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch
from gpu_cases import GPU, open_cpu, raising

from benchmarks.gpu import machine as machine_module
from benchmarks.gpu import timing
from benchmarks.gpu.case import Case
from benchmarks.gpu.machine import Machine, missing_gpu, open_gpu
from benchmarks.gpu.runner import run_case
from benchmarks.gpu.timing import QUEUED_CALLS, Repeats, num_copies, time_calls


class Stream:
    """A device whose every call takes 3 ms, and whose clock stands still otherwise."""

    def __init__(self) -> None:
        self.milliseconds = 0.0
        self.log: list[str] = []

    def call(self, name: str) -> None:
        self.milliseconds += 3
        self.log.append(name)


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Stream:
    stream = Stream()

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = stream.milliseconds

        def elapsed_time(self, end: Event) -> float:
            return end.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: stream.log.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: stream.log.append("sleep"))
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(L2_cache_size=60_000_000)
    )
    return stream


def test_calls_are_timed_between_events_with_the_host_ahead(stream: Stream):
    calls = [lambda: stream.call("a"), lambda: stream.call("b")]
    spread = time_calls(GPU, calls, Repeats(4, 2 * QUEUED_CALLS))
    assert (spread.p10, spread.median, spread.p90) == (3000.0, 3000.0, 3000.0)
    assert stream.log[-1] == "synchronize"
    assert stream.log.count("sleep") == 2
    last = stream.log[stream.log.index("sleep") :]
    assert last[: QUEUED_CALLS + 1] == ["sleep", *["a", "b"] * (QUEUED_CALLS // 2)]


def test_inputs_that_take_turns_exceed_the_last_cache_four_times(stream: Stream):
    assert num_copies(GPU, 30e6) == 8
    assert num_copies(GPU, 1e9) == 2
    assert num_copies(GPU, 1.0) == timing.MAX_COPIES


def test_waits_of_the_host_are_counted_and_the_mode_is_put_back(monkeypatch: pytest.MonkeyPatch):
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with Machine(GPU, "triton", 1.0).host_waits() as waits:
        for _ in range(3):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
        warnings.warn("Synchronization debug mode does not detect all synchronizing operations", stacklevel=1)
    assert len(waits) == 3
    assert modes == ["warn", "default"]


def test_a_gpu_is_opened_with_the_bandwidth_it_has(stream: Stream, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    with pytest.raises(RuntimeError, match="CUDA"):
        open_gpu()
    monkeypatch.setattr(machine_module, "missing_gpu", lambda: None)
    monkeypatch.setattr(machine_module, "copy_bandwidth", lambda device, num_bytes, repeats: 4.3e12)
    machine = open_gpu()
    assert machine.is_cuda
    assert machine.describe()["device"] == "NVIDIA H200"
    assert machine.floor(4.3e12) == 1e6


@pytest.mark.parametrize(
    ("has_cuda", "has_triton", "interprets", "reason"),
    [
        (False, True, False, "CUDA device"),
        (True, False, False, "needs triton"),
        (True, True, True, "TRITON_INTERPRET"),
        (True, True, False, None),
    ],
)
def test_why_the_suite_cannot_run(
    monkeypatch: pytest.MonkeyPatch, has_cuda: bool, has_triton: bool, interprets: bool, reason: str | None
):
    knobs = SimpleNamespace(runtime=SimpleNamespace(interpret=interprets))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    monkeypatch.setattr(machine_module, "triton", SimpleNamespace(knobs=knobs) if has_triton else None)
    found = missing_gpu()
    assert (found is None) if reason is None else (found is not None and reason in found)


def test_a_failure_names_its_place_without_a_path_of_this_machine():
    message = run_case(Case("check", raising, 1), open_cpu(), None)["message"]
    assert message.splitlines()[-1] == "RuntimeError: no such thing"
    assert "support/gpu_cases.py" in message
    assert not any(word.startswith("/") for word in message.split())
