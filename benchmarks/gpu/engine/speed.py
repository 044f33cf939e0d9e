"""What a token costs: plain against the memory's bandwidth, guided against plain."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.engine.busy import busy_share, device_intervals, kernels_of_step
from benchmarks.gpu.engine.sizes import EngineSizes
from benchmarks.gpu.engine.steady import SteadyDecode, reply_tokens, require_guidance
from benchmarks.gpu.engine.subject import Subject, random_prompts
from benchmarks.gpu.findings import Aim, Findings, Measurement
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.sizes import dtype_name
from benchmarks.gpu.timing import spread_of
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.request import Guidance

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
