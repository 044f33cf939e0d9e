"""Speed of the engine: a plain token against the memory's bandwidth, a guided one against a plain one."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import spread_of
from benchmarks.gpu.case import Case
from benchmarks.gpu.engine.subject import EngineSizes, Subject, random_prompts
from benchmarks.gpu.findings import Aim, Findings, Measurement
from benchmarks.gpu.inputs import dtype_name
from benchmarks.gpu.machine import Machine
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.request import ChoiceDone, Delta, Failed, Guidance, Request, SamplingParams

WARM_STEPS = 3
Spent = tuple[bool, float]


def reply_tokens(num_steps: int, num_rows: int, prompt: int, budget: int) -> int:
    """Of a reply that lasts until every row is prefilled and all have done so many steps together."""
    prefill_steps = -(-num_rows * prompt // max(budget - num_rows, 1)) + 1
    return num_steps + prefill_steps + 4 * WARM_STEPS


def require_guidance(findings: Findings, rows: Sequence[Spent]) -> None:
    """Guidance was at work where it was asked for, and only there: without it a reply spends exactly 0."""
    spent = [kl for is_guided, kl in rows if not is_guided]
    findings.require("KL of replies without guidance", max((abs(kl) for kl in spent), default=0.0), 0)
    idle = sum(not kl > 0 for is_guided, kl in rows if is_guided)
    findings.require("guided replies that spent no KL", idle, 0)


class SteadyDecode:
    """Prefills all prompts, then steps on demand; `finish` lets the replies end."""

    def __init__(
        self,
        engine: Engine,
        prompts: Sequence[tuple[int, ...]],
        guidance: Sequence[Guidance],
        max_tokens: int,
    ) -> None:
        self._engine = engine
        self._done: list[ChoiceDone] = []
        self._begun: set[str] = set()
        self._guided = {str(i): g.strength != 0 for i, g in enumerate(guidance)}
        for i, (prompt, given) in enumerate(zip(prompts, guidance, strict=True)):
            sampling = SamplingParams(max_tokens=max_tokens, seed=i, ignore_eos=True)
            engine.add(Request(str(i), prompt, sampling, given))
        while len(self._begun) < len(prompts):
            self._step()
        self.steps(WARM_STEPS)

    def steps(self, count: int) -> list[float]:
        """Seconds of each of so many steps."""
        seconds = []
        for _ in range(count):
            start = time.perf_counter()
            self._step()
            seconds.append(time.perf_counter() - start)
        assert not self._done, "a reply has ended: the steps were not all full"
        return seconds

    def finish(self) -> list[Spent]:
        """Run to the end; returns for every reply whether guidance was asked for and the KL that it spent."""
        while self._engine.has_work:
            self._step()
        if self._engine.policy.device.type == "cuda":
            torch.cuda.synchronize()
        assert len(self._done) == len(self._guided)
        return [(self._guided[done.request_id], done.summary.kl) for done in self._done]

    def _step(self) -> None:
        for event in self._engine.step():
            assert not isinstance(event, Failed), event
            if isinstance(event, Delta):
                self._begun.add(event.request_id)
            elif isinstance(event, ChoiceDone):
                self._done.append(event)


Interval = tuple[float, float]
NAME_LENGTH = 70  # of a kernel: templates go on for hundreds of characters


def busy_share(intervals: Iterable[Interval]) -> float:
    """Of the time from the first beginning to the last end, the share within any interval; NaN for none."""
    busy, end, first = 0.0, 0.0, None
    for start, stop in sorted(intervals):
        if first is None:
            first = end = start
        busy += max(stop - max(start, end), 0.0)
        end = max(end, stop)
    return busy / (end - first) if first is not None and end > first else float("nan")


def device_intervals(profiler: Any, device: torch.device) -> list[Interval]:
    """Begin and end of all that ran on the device, in microseconds."""
    return [
        (event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.device_type.name == device.type.upper() and not event.is_user_annotation
    ]


def kernels_of_step(
    profiler: Any, device: torch.device, num_steps: int, most: int = 40
) -> list[dict[str, float | int | str]]:
    """What ran on the device in a step, by kernel: launches, and microseconds in all, the longest first."""
    launches: Counter[str] = Counter()
    micros: Counter[str] = Counter()
    for event in profiler.events():
        if event.device_type.name == device.type.upper() and not event.is_user_annotation:
            name = event.name[:NAME_LENGTH]
            launches[name] += 1
            micros[name] += event.time_range.end - event.time_range.start
    return [
        {
            "kernel": name,
            "launches": round(launches[name] / num_steps, 2),
            "microseconds": round(total / num_steps, 2),
        }
        for name, total in micros.most_common(most)
    ]


PLAIN_LATENCY_AIM = 1.35  # of the time that reading the weights takes
GUIDED_LATENCY_AIM = 1.02
THROUGHPUT_AIMS = {"tied": 0.97, "lowrank": 0.95}
BUSY_AIM = 0.85
MIXED_STRENGTHS = (1.0, 0.5, 2.0, -1.0, 0.0)

Steps = dict[str, list[list[float]]]  # by contestant: seconds of the steps of each turn


def bench_latency(machine: Machine, sizes: EngineSizes, findings: Findings) -> None:
    """One row: the time from token to token, plain and guided by either form."""
    subject, engine = large_engine(machine, sizes)
    findings.facts["engine"] = describe(engine)
    contestants = {
        "plain": [Guidance()],
        "lowrank": [Guidance(1.0, (("lowrank", 1.0),))],
        "tied": [Guidance(1.0, (("tied", 1.0),))],
    }
    steps = take_turns(engine, sizes, contestants, findings)
    _report(findings, machine, subject, sizes, steps, num_rows=1)
    weights = machine.floor(subject.weight_bytes)
    findings.facts["weight_gb"] = round(subject.weight_bytes / 1e9, 3)
    plain = findings.measurements[0].time.median
    what = "1 row, plain latency / reading the weights"
    findings.aims.append(Aim(what, plain / weights, at_most=PLAIN_LATENCY_AIM))
    for form in ("lowrank", "tied"):
        ratio = _ratio(steps, form)
        findings.aims.append(Aim(f"1 row, guided latency / plain, {form}", ratio, at_most=GUIDED_LATENCY_AIM))
    findings.publish(findings)
    for name in ("plain", "tied"):
        with findings.attempt(f"kernels, {name}"):
            run = _begin(engine, sizes, contestants[name])
            findings.tables[f"kernels of a step, 1 row, {name}"] = _profile(machine, sizes, run)[1]
            require_guidance(findings, run.finish())


def bench_tied_throughput(machine: Machine, sizes: EngineSizes, findings: Findings) -> None:
    _bench_throughput(machine, sizes, findings, "tied", sizes.tied_rows)


def bench_lowrank_throughput(machine: Machine, sizes: EngineSizes, findings: Findings) -> None:
    _bench_throughput(machine, sizes, findings, "lowrank", sizes.lowrank_rows)


def _bench_throughput(
    machine: Machine, sizes: EngineSizes, findings: Findings, form: str, num_rows: int
) -> None:
    """Many rows of mixed strengths; the device's busy share, and how often a step makes the host wait."""
    subject, engine = large_engine(machine, sizes)
    findings.facts["engine"] = describe(engine)
    mixed = [Guidance(MIXED_STRENGTHS[row % len(MIXED_STRENGTHS)], ((form, 1.0),)) for row in range(num_rows)]
    contestants = {"plain": [Guidance()] * num_rows, form: mixed}
    steps = take_turns(engine, sizes, contestants, findings)
    _report(findings, machine, subject, sizes, steps, num_rows)
    throughput = 1 / _ratio(steps, form)
    findings.aims.append(
        Aim(f"{num_rows} rows, guided / plain throughput, {form}", throughput, at_least=THROUGHPUT_AIMS[form])
    )
    findings.publish(findings)
    with findings.attempt("profile"):
        run = _begin(engine, sizes, mixed)
        with machine.host_waits() as waits:
            run.steps(sizes.profiled_steps)
        findings.facts["host_waits_per_step"] = len(waits) / sizes.profiled_steps
        places = Counter(f"{Path(wait.filename).name}:{wait.lineno}" for wait in waits)
        findings.facts["host_waits_at"] = ", ".join(f"{n} at {place}" for place, n in places.most_common())
        share, kernels = _profile(machine, sizes, run)
        findings.aims.append(Aim(f"{num_rows} rows, device busy", share, at_least=BUSY_AIM))
        findings.tables[f"kernels of a step, {num_rows} rows, {form}"] = kernels
        require_guidance(findings, run.finish())


def large_engine(machine: Machine, sizes: EngineSizes) -> tuple[Subject, Engine]:
    """One for all benchmarks: to make its weights and record its graphs takes longer than to measure it."""

    def make() -> tuple[Subject, Engine]:
        subject = Subject(sizes.large, machine.device, sizes.dtype, sizes.rank)
        return subject, subject.engine(max_num_seqs=max(sizes.tied_rows, sizes.lowrank_rows))

    return machine.keep("large engine", make)


def _profile(
    machine: Machine, sizes: EngineSizes, run: SteadyDecode
) -> tuple[float, list[dict[str, float | int | str]]]:
    """The device's busy share over some steps, and what it did in one, the longest first."""
    activity = ProfilerActivity.CUDA if machine.is_cuda else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        run.steps(sizes.profiled_steps)
    share = busy_share(device_intervals(profiler, machine.device))
    return share, kernels_of_step(profiler, machine.device, sizes.profiled_steps)


def describe(engine: Engine) -> str:
    config, layers = engine.config, getattr(engine.policy.model.base_model, "layers", ())
    num_fused = sum("forward" in vars(layer) for layer in layers)
    return (
        f"attention {config.attention}, CUDA graphs {config.cuda_graphs}, async depth {config.async_depth}, "
        f"{num_fused} of {len(layers)} layers fused"
    )


def take_turns(
    engine: Engine,
    sizes: EngineSizes,
    contestants: Mapping[str, Sequence[Guidance]],
    findings: Findings,
) -> Steps:
    """Every contestant in every turn, after one turn to warm up."""
    steps: Steps = {name: [] for name in contestants}
    for turn in range(sizes.turns + 1):
        for name, guidance in contestants.items():
            run = _begin(engine, sizes, guidance)
            seconds = run.steps(sizes.steps)
            require_guidance(findings, run.finish())
            if turn:
                steps[name].append(seconds)
    return steps


def _begin(engine: Engine, sizes: EngineSizes, guidance: Sequence[Guidance]) -> SteadyDecode:
    num_steps, num_rows = max(sizes.steps, 2 * sizes.profiled_steps), len(guidance)
    max_tokens = reply_tokens(num_steps, num_rows, sizes.prompt, engine.config.token_budget)
    prompts = random_prompts(sizes.large, [sizes.prompt] * num_rows)
    return SteadyDecode(engine, prompts, guidance, max_tokens)


def _report(
    findings: Findings, machine: Machine, subject: Subject, sizes: EngineSizes, steps: Steps, num_rows: int
) -> None:
    context = sizes.prompt + sizes.steps // 2
    dtype = dtype_name(sizes.dtype)
    for name, turns in steps.items():
        num_bytes = subject.weight_bytes + subject.cache_bytes(num_rows, context)
        if name in subject.heads:
            num_bytes += subject.head_bytes(name)
        time = spread_of([1e6 * second for turn in turns for second in turn])
        shape = f"{sizes.large.name} {dtype} context={context}"
        findings.measurements.append(
            Measurement(f"decode step, {name}", shape, num_rows, time, machine.floor(num_bytes))
        )


def _ratio(steps: Steps, name: str) -> float:
    """Of median step times within a turn, the median over turns."""
    pairs = zip(steps[name], steps["plain"], strict=True)
    return statistics.median(statistics.median(a) / statistics.median(b) for a, b in pairs)


CASES = {
    "latency of one row": Case("benchmark", bench_latency, 60, turn="engine"),
    "throughput, tied": Case("benchmark", bench_tied_throughput, 60, turn="engine"),
    "throughput, low-rank": Case("benchmark", bench_lowrank_throughput, 60, turn="engine"),
}
