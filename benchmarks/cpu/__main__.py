"""Throughput of the engine on the CPU: guided beside plain, beside vLLM and transformers, and under load.

    python -m benchmarks.cpu --vllm-python PATH/TO/vllm-venv/bin/python

Contestants take turns within every repeat, and ratios are taken within a repeat: on a machine whose speed
drifts, only those mean something. The last line is one JSON document.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import common
from benchmarks.common import Document, ratio_of, spread_of, take_turns
from benchmarks.cpu import contestants as makespan
from benchmarks.cpu.contestants import Contestant, Generate, GuidedGenerate, Ours, Vllm
from benchmarks.cpu.subject import VOCAB_SIZE, save_subject
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.request import Guidance


@dataclass(frozen=True, slots=True)
class BenchConfig:
    """rows: concurrent sequences. repeats: turns of every contestant, after one to warm up.
    vllm_python: the interpreter of a virtual environment that holds vLLM; without it that peer is absent.
    makespan_requests: 0 leaves the load test out. out: where the JSON document is kept.
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


def measure(config: BenchConfig) -> Document:
    found: Document = {"throughput": {}, "makespan": {}, "absent": []}
    with tempfile.TemporaryDirectory() as scratch:
        model, heads = save_subject(Path(scratch), config.seed)
        engine = Engine.from_config(EngineConfig(model, heads=tuple(heads.values())))
        contestants: dict[str, Contestant] = {"plain": Ours(engine, Guidance())}
        for form in heads:
            contestants[form] = Ours(engine, Guidance(config.strength, ((form, 1.0),)))
        contestants["generate"] = Generate(model, heads["lowrank"])
        vllm = None
        if config.vllm_python is None:
            found["absent"].append("vLLM: give --vllm-python the interpreter of an environment that holds it")
        else:
            vllm = contestants["vllm"] = Vllm(config.vllm_python, model)
            found["machine"] = common.hardware() | {"vllm": vllm.version}
        for rows in config.rows:
            found["throughput"][str(rows)] = measure_throughput(contestants, config, rows)
        if vllm is not None:
            vllm.close()
        if config.makespan_requests:
            found["makespan"] = measure_makespan(engine, model, heads["lowrank"], config)
    return found


def measure_throughput(contestants: Mapping[str, Contestant], config: BenchConfig, rows: int) -> Document:
    """Tokens per second of each, and the ratios of ours to the others', within repeats."""
    rng = np.random.default_rng([config.seed, rows])

    def run(contestant: Contestant, turn: int) -> float:
        prompts = rng.integers(2, VOCAB_SIZE, (rows, config.prompt_tokens)).tolist()
        return contestant.run(prompts, config.new_tokens)

    runs = {name: partial(run, contestant) for name, contestant in contestants.items()}
    seconds = take_turns(runs, config.repeats, warm_up=1, progress=f"{rows} rows")
    num_tokens = rows * config.new_tokens
    guided = [name for name in ("lowrank", "tied") if name in seconds]
    peers = [name for name in ("vllm", "generate") if name in seconds]
    pairs: list[tuple[str, str]] = [(name, "plain") for name in guided]
    pairs += [(name, peer) for peer in peers for name in ("plain", *guided)]
    return {
        "tokens_per_second": {
            name: spread_of([num_tokens / s for s in times]).as_dict() for name, times in seconds.items()
        },
        "ratios": {f"{a} / {b}": ratio_of(seconds[b], seconds[a]).as_dict() for a, b in pairs},
    }


def measure_makespan(engine: Engine, model: Path, head: Path, config: BenchConfig) -> Document:
    """Seconds from the first arrival to the last reply, at twice the requests that the engine can answer."""
    guidance = Guidance(config.strength, (("lowrank", 1.0),))
    generate = GuidedGenerate(model, head, config.strength)
    rng = np.random.default_rng(config.seed)
    at_once = makespan.draw_arrivals(rng, config.makespan_requests, float("inf"), VOCAB_SIZE)
    makespan.ours(engine, at_once, guidance)
    capacity = config.makespan_requests / makespan.ours(engine, at_once, guidance)
    arrivals = [
        makespan.draw_arrivals(rng, config.makespan_requests, 2 * capacity, VOCAB_SIZE)
        for _ in range(config.makespan_repeats)
    ]
    max_batch = engine.config.max_num_seqs
    runs: dict[str, Callable[[int], float]] = {
        "ours": lambda turn: makespan.ours(engine, arrivals[turn], guidance),
        "one_by_one": lambda turn: makespan.hugging_face(generate, arrivals[turn], 1),
        "padded_batches": lambda turn: makespan.hugging_face(generate, arrivals[turn], max_batch),
    }
    seconds = take_turns(runs, config.makespan_repeats, progress="makespan")
    return {
        "requests": config.makespan_requests,
        "arrivals_per_second": round(2 * capacity, 2),
        "seconds": {name: spread_of(times).as_dict() for name, times in seconds.items()},
        "ratios": {
            f"{name} / ours": ratio_of(seconds[name], seconds["ours"]).as_dict()
            for name in ("one_by_one", "padded_batches")
        },
    }


def table(found: Document) -> str:
    """A line per ratio, a column per number of rows, medians with p10…p90."""
    throughput = found["throughput"]
    names: Sequence[str] = list(next(iter(throughput.values()))["ratios"]) if throughput else []
    tables = [
        common.as_table(
            ["ratio of tokens/s", *(f"{rows} rows" for rows in throughput)],
            [[name, *(at["ratios"][name] for at in throughput.values())] for name in names],
        )
    ]
    if found["makespan"]:
        tables.append(common.as_table(["makespan", "ratio"], list(found["makespan"]["ratios"].items())))
    return "\n\n".join([*tables, *(f"absent: {peer}" for peer in found["absent"])])


if __name__ == "__main__":
    common.main(BenchConfig, measure, table)
