"""Benchmark the engine on CPU: guided against plain, against vLLM and transformers, and under load.

    python -m benchmarks.cpu --vllm-python PATH/TO/vllm-venv/bin/python

Contestants take turns within every repeat, and ratios are taken within a repeat: on a machine whose speed
drifts, only those mean something. The last line is one JSON document.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import transformers
import tyro
from tqdm.auto import tqdm

from benchmarks.cpu import contestants as makespan
from benchmarks.cpu.contestants import Contestant, Generate, GuidedGenerate, Ours, Vllm
from benchmarks.cpu.subject import VOCAB_SIZE, save_subject
from trimtab.guidance.files import write_text
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.request import Guidance

Ratios = dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True)
class BenchConfig:
    """rows: concurrent sequences. repeats: turns of every contestant, after one to warm up.
    vllm_python: the interpreter of a virtual environment that holds vLLM; without it that peer is absent.
    makespan_requests: 0 leaves the load test out. out: where the JSON document is written as well.
    """

    rows: tuple[int, ...] = (1, 8, 32)
    prompt_tokens: int = 32
    new_tokens: int = 96
    repeats: int = 7
    makespan_requests: int = 64
    makespan_repeats: int = 3
    strength: float = 1.0
    seed: int = 0
    vllm_python: Path | None = None
    out: Path | None = None


@dataclass(slots=True)
class Report:
    hardware: dict[str, str]
    config: dict[str, object]
    throughput: dict[str, dict[str, object]] = field(default_factory=dict)
    makespan: dict[str, object] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)


def hardware() -> dict[str, str]:
    models = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 3),
        "p10": round(float(np.percentile(values, 10)), 3),
        "p90": round(float(np.percentile(values, 90)), 3),
    }


def measure_throughput(
    contestants: dict[str, Contestant], config: BenchConfig, rows: int
) -> dict[str, object]:
    """Tokens per second of each, and the ratios of ours to the others', within repeats."""
    rng = np.random.default_rng([config.seed, rows])
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for repeat in tqdm(range(config.repeats + 1), desc=f"{rows} rows", unit="turn"):
        order = list(contestants)
        order = order[repeat % len(order) :] + order[: repeat % len(order)]
        for name in order:
            prompts = rng.integers(2, VOCAB_SIZE, (rows, config.prompt_tokens)).tolist()
            seconds[name].append(contestants[name].run(prompts, config.new_tokens))
    for times in seconds.values():
        del times[0]

    def ratio(ours: str, theirs: str) -> dict[str, float]:
        return spread([b / a for a, b in zip(seconds[ours], seconds[theirs], strict=True)])

    num_tokens = rows * config.new_tokens
    guided = [name for name in ("lowrank", "tied") if name in seconds]
    peers = [name for name in ("vllm", "generate") if name in seconds]
    ratios = {f"{name} / plain": ratio(name, "plain") for name in guided}
    ratios |= {f"{name} / {peer}": ratio(name, peer) for peer in peers for name in ("plain", *guided)}
    return {
        "tokens_per_second": {
            name: spread([num_tokens / s for s in times]) for name, times in seconds.items()
        },
        "ratios": ratios,
    }


def measure_makespan(engine: Engine, model: Path, head: Path, config: BenchConfig) -> dict[str, object]:
    guidance = Guidance(config.strength, (("lowrank", 1.0),))
    generate = GuidedGenerate(model, head, config.strength)
    rng = np.random.default_rng(config.seed)
    at_once = makespan.draw_arrivals(rng, config.makespan_requests, float("inf"), VOCAB_SIZE)
    makespan.ours(engine, at_once, guidance)
    capacity = config.makespan_requests / makespan.ours(engine, at_once, guidance)
    runs: dict[str, Callable[[list[makespan.Arrival]], float]] = {
        "ours": lambda arrivals: makespan.ours(engine, arrivals, guidance),
        "one_by_one": lambda arrivals: makespan.hugging_face(generate, arrivals, 1),
        "padded_batches": lambda arrivals: makespan.hugging_face(
            generate, arrivals, engine.config.max_num_seqs
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in tqdm(range(config.makespan_repeats), desc="makespan", unit="turn"):
        arrivals = makespan.draw_arrivals(rng, config.makespan_requests, 2 * capacity, VOCAB_SIZE)
        for name, run in runs.items():
            seconds[name].append(run(arrivals))
    return {
        "requests": config.makespan_requests,
        "arrivals_per_second": round(2 * capacity, 2),
        "seconds": {name: spread(times) for name, times in seconds.items()},
        "ratios": {
            f"{name} / ours": spread([a / b for a, b in zip(seconds[name], seconds["ours"], strict=True)])
            for name in ("one_by_one", "padded_batches")
        },
    }


def run(config: BenchConfig) -> Report:
    report = Report(hardware(), {k: str(v) for k, v in dataclasses.asdict(config).items()})
    with tempfile.TemporaryDirectory() as scratch:
        model, heads = save_subject(Path(scratch), config.seed)
        engine = Engine.from_config(EngineConfig(model, heads=tuple(heads.values())))
        contestants: dict[str, Contestant] = {"plain": Ours(engine, Guidance())}
        for form in heads:
            contestants[form] = Ours(engine, Guidance(config.strength, ((form, 1.0),)))
        contestants["generate"] = Generate(model, heads["lowrank"])
        vllm = None
        if config.vllm_python is None:
            report.absent.append("vLLM: give --vllm-python the interpreter of an environment that holds it")
        else:
            vllm = contestants["vllm"] = Vllm(config.vllm_python, model)
            report.hardware["vllm"] = vllm.version
        for rows in config.rows:
            report.throughput[str(rows)] = measure_throughput(contestants, config, rows)
        if vllm is not None:
            vllm.close()
        if config.makespan_requests:
            report.makespan = measure_makespan(engine, model, heads["lowrank"], config)
    return report


def as_markdown(report: Report) -> str:
    """One table: a line per ratio, a column per number of rows, medians with p10…p90."""

    def cell(value: dict[str, float]) -> str:
        return f"{value['median']:.2f} ({value['p10']:.2f}…{value['p90']:.2f})"

    rows = list(report.throughput)
    lines = [
        f"| ratio of tokens/s | {' | '.join(f'{n} rows' for n in rows)} |",
        "|---" * (len(rows) + 1) + "|",
    ]
    names: list[str] = list(report.throughput[rows[0]]["ratios"]) if rows else []  # type: ignore[call-overload]
    for name in names:
        cells = [cell(report.throughput[n]["ratios"][name]) for n in rows]  # type: ignore[index]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    ratios: Ratios = report.makespan.get("ratios", {})  # type: ignore[assignment]
    lines += [f"\nmakespan, {name}: {cell(value)}" for name, value in ratios.items()]
    return "\n".join([*lines, *(f"\nabsent: {peer}" for peer in report.absent)])


def main(config: BenchConfig) -> None:
    report = run(config)
    document = json.dumps(dataclasses.asdict(report))
    if config.out is not None:
        write_text(config.out, document + "\n")
    print(f"{report.hardware}\n\n{as_markdown(report)}\n")
    print(document)


if __name__ == "__main__":
    main(tyro.cli(BenchConfig, description=__doc__))
