"""Peers on the CPU: the engine beside vLLM, llama.cpp and transformers, and what the machine allows.

    python -m benchmarks.cpu.peers --model MODEL_FOLDER --vllm-python VENV/bin/python \
        --llama-bench BUILD/bin/llama-batched-bench --gguf Q8_0.gguf F16.gguf

Contestants take turns within every repeat, and ratios are taken within a repeat. A peer is stopped between
its turns. llama.cpp's rate is that of its decode steps alone, which do not sample; all others' are of whole
requests, prefill and sampling included. The last line is one JSON document.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks import common
from benchmarks.common import Document, ratio_of, spread_of, take_turns
from benchmarks.cpu.contestants import Contestant, Generate, Ours, Prompts, Vllm
from benchmarks.cpu.subject import save_heads, save_subject
from trimtab.kernels.cpu.library import load_library
from trimtab.server.engine.config import EngineConfig, Weights
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.request import Guidance

BANDWIDTH_BYTES, PRODUCT = 1 << 28, 1536
Part = Literal["throughput", "long", "first_token"]
LONG_PROMPT, LONG_ROWS, LONG_REPLY = 1000, 8, 49
FIRST_TOKEN_PROMPT = 1500


@dataclass(frozen=True, slots=True)
class PeersConfig:
    """model: a folder; without one a Llama of 31 M random weights. weights: of our engines, see EngineConfig.
    guided: of those that also run with heads. rows: concurrent sequences. repeats: turns of every contestant,
    after one to warm up.
    vllm_python: the interpreter of an environment that holds vLLM, in these dtypes. llama_bench: llama.cpp's
    llama-batched-bench, and gguf: what it runs. Peers that are not given are absent. parts: what to measure.
    """

    model: Path | None = None
    weights: tuple[Weights, ...] = get_args(Weights)
    guided: tuple[Weights, ...] = ("auto", "bfloat16")
    rows: tuple[int, ...] = (1, 8, 32)
    prompt_tokens: int = 64
    new_tokens: int = 96
    repeats: int = 4
    strength: float = 1.0
    seed: int = 0
    vllm_python: Path | None = None
    vllm_dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    llama_bench: Path | None = None
    gguf: tuple[Path, ...] = ()
    generate: bool = False
    parts: tuple[Part, ...] = get_args(Part)
    out: Path | None = None


class LlamaCpp:
    """llama.cpp's decode steps over one GGUF, a process each turn."""

    def __init__(self, bench: Path, gguf: Path, num_threads: int) -> None:
        self._command = [str(bench), "-m", str(gguf), "-t", str(num_threads), "-tb", str(num_threads)]
        self._command += ["-c", "8192", "-b", "2048", "-ub", "512", "--output-format", "jsonl", "-fa", "auto"]

    def run(self, prompts: Prompts, num_new_tokens: int) -> float:
        """Seconds of decoding alone."""
        sizes = ["-npp", len(prompts[0]), "-ntg", num_new_tokens, "-npl", len(prompts)]
        found = subprocess.run(
            [*self._command, *map(str, sizes)], check=True, capture_output=True, text=True
        ).stdout
        lines = [line for line in found.splitlines() if line.startswith("{")]
        return float(json.loads(lines[-1])["t_tg"])


def limits() -> Document:
    """GB/s of reading memory in huge pages, and GFLOP/s of products by torch, by all threads: the best of
    some."""
    x = load_library().memory.take(BANDWIDTH_BYTES).view(torch.float32).fill_(1)
    a = torch.randn(PRODUCT, PRODUCT)
    narrow = a.bfloat16()

    def best(run: Callable[[], object], repeats: int = 7) -> float:
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        return min(times)

    return {
        "read_gb_per_second": BANDWIDTH_BYTES / best(x.sum) / 1e9,
        "float32_gflop_per_second": 2 * PRODUCT**3 / best(lambda: a @ a) / 1e9,
        "bfloat16_gflop_per_second": 2 * PRODUCT**3 / best(lambda: narrow @ narrow) / 1e9,
    }


@dataclass(frozen=True, slots=True)
class Field:
    """contestants: by name; those of `ours` by their weights' name. stored_bytes: by the same."""

    contestants: Mapping[str, Contestant]
    stored_bytes: Mapping[str, int]
    versions: Mapping[str, str]
    absent: Sequence[str]
    vocab_size: int


def measure(config: PeersConfig) -> Document:
    with tempfile.TemporaryDirectory() as scratch:
        field = gather(config, Path(scratch))
        found: Document = {
            "machine": common.hardware() | dict(field.versions),
            "limits": limits(),
            "stored_bytes": dict(field.stored_bytes),
            "absent": list(field.absent),
        }
        if "throughput" in config.parts:
            found["throughput"] = {str(rows): measure_throughput(field, config, rows) for rows in config.rows}
        if "long" in config.parts:
            found["long"] = measure_long(field, config)
        if "first_token" in config.parts:
            found["first_token"] = measure_first_token(field, config)
        for contestant in field.contestants.values():
            if isinstance(contestant, Vllm):
                contestant.close()
    return found


def gather(config: PeersConfig, scratch: Path) -> Field:
    if config.model is None:
        model, heads = save_subject(scratch, config.seed)
    else:
        model = config.model
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        heads = save_heads(scratch, loaded, AutoTokenizer.from_pretrained(model), model.name)
        del loaded
    contestants: dict[str, Contestant] = {}
    stored, versions, absent, vocab_size = dict[str, int](), dict[str, str](), list[str](), 0
    for weights in config.weights:
        engine = Engine.from_config(
            EngineConfig(model, heads=tuple(heads.values()), weights=weights, cpu_backend="native")
        )
        vocab_size = engine.policy.vocab_size
        assert engine.policy.native is not None
        stored[weights] = engine.policy.native.num_bytes
        contestants[f"plain {weights}"] = Ours(engine, Guidance())
        for form in heads if weights in config.guided else ():
            guidance = Guidance(config.strength, ((form, 1.0),))
            contestants[f"{form} {weights}"] = Ours(engine, guidance)
    if config.generate:
        contestants["generate"] = Generate(model, heads["lowrank"])
    for dtype in config.vllm_dtypes if config.vllm_python else ():
        assert config.vllm_python is not None
        contestants[f"vllm {dtype}"] = vllm = Vllm(config.vllm_python, model, dtype)
        versions["vllm"] = vllm.version
    if not config.vllm_python:
        absent.append("vLLM: give --vllm-python the interpreter of an environment that holds it")
    for gguf in config.gguf if config.llama_bench else ():
        assert config.llama_bench is not None
        contestants[f"llama.cpp {gguf.stem}"] = LlamaCpp(config.llama_bench, gguf, torch.get_num_threads())
    if not (config.llama_bench and config.gguf):
        absent.append("llama.cpp: give --llama-bench its llama-batched-bench, and --gguf files")
    return Field(contestants, stored, versions, absent, vocab_size)


def measure_throughput(field: Field, config: PeersConfig, rows: int) -> Document:
    """Tokens per second of each, and the ratios of ours to the others', within repeats."""
    rng = np.random.default_rng([config.seed, rows])

    def run(contestant: Contestant, turn: int) -> float:
        prompts = rng.integers(2, field.vocab_size, (rows, config.prompt_tokens)).tolist()
        return contestant.run(prompts, config.new_tokens)

    runs = {name: partial(run, contestant) for name, contestant in field.contestants.items()}
    seconds = take_turns(runs, config.repeats, warm_up=1, progress=f"{rows} rows")
    return _outcome(seconds, rows * config.new_tokens, config.weights)


def measure_long(field: Field, config: PeersConfig) -> Document:
    """Tokens per second of decoding behind long prompts, which a prefix cache holds from a run before."""
    rng = np.random.default_rng([config.seed, LONG_PROMPT])

    def run(contestant: Contestant, turn: int) -> float:
        prompts = rng.integers(2, field.vocab_size, (LONG_ROWS, LONG_PROMPT)).tolist()
        contestant.run(prompts, 1)
        short = contestant.run(prompts, 1)
        return contestant.run(prompts, LONG_REPLY) - short

    runs = {
        name: partial(run, each) for name, each in _whole(field).items() if "plain" in name or "vllm" in name
    }
    seconds = take_turns(runs, config.repeats, progress=f"{LONG_PROMPT} keys")
    return _outcome(seconds, LONG_ROWS * (LONG_REPLY - 1), config.weights)


def measure_first_token(field: Field, config: PeersConfig) -> Document:
    """Seconds to the first token of a long prompt."""
    rng = np.random.default_rng([config.seed, FIRST_TOKEN_PROMPT])

    def run(contestant: Contestant, turn: int) -> float:
        prompt = rng.integers(2, field.vocab_size, (1, FIRST_TOKEN_PROMPT)).tolist()
        return contestant.run(prompt, 1)

    runs = {
        name: partial(run, each) for name, each in _whole(field).items() if "plain" in name or "vllm" in name
    }
    seconds = take_turns(runs, config.repeats, warm_up=1, progress="first token")
    return {"seconds": {name: spread_of(times).as_dict() for name, times in seconds.items()}} | _outcome(
        seconds, 1, config.weights
    )


def _whole(field: Field) -> dict[str, Contestant]:
    """Those that complete requests."""
    return {name: each for name, each in field.contestants.items() if not isinstance(each, LlamaCpp)}


def _outcome(seconds: Mapping[str, Sequence[float]], num_tokens: int, weights: Sequence[str]) -> Document:
    """Rates, and the ratios of ours to every peer and of guided to plain."""
    ours = [name for name in seconds if name.split(" ")[-1] in weights and not name.startswith("vllm")]
    plain = [name for name in ours if name.startswith("plain")]
    pairs = [(name, f"plain {name.split(' ')[-1]}") for name in ours if name not in plain]
    pairs += [(name, peer) for name in plain for peer in seconds if peer not in ours]
    return {
        "tokens_per_second": {
            name: spread_of([num_tokens / s for s in times]).as_dict() for name, times in seconds.items()
        },
        "ratios": {f"{a} / {b}": ratio_of(seconds[b], seconds[a]).as_dict() for a, b in pairs},
    }


def table(found: Document) -> str:
    """Rates and ratios, medians with p10…p90, a column per number of rows."""
    tables = []
    throughput = found.get("throughput", {})
    for what in ("tokens_per_second", "ratios") if throughput else ():
        names = list(next(iter(throughput.values()))[what])
        rows: list[list[Any]] = [[name, *(at[what][name] for at in throughput.values())] for name in names]
        tables.append(common.as_table([what.replace("_", " "), *(f"{n} rows" for n in throughput)], rows))
    for part, unit in (("long", "tokens_per_second"), ("first_token", "seconds")):
        if part in found:
            tables += [
                common.as_table([f"{part}, {what}", ""], list(found[part][what].items()))
                for what in (unit, "ratios")
            ]
    tables.append("\n".join(f"{name}: {value:.4g}" for name, value in found["limits"].items()))
    return "\n\n".join([*tables, *(f"absent: {peer}" for peer in found["absent"])])


if __name__ == "__main__":
    common.main(PeersConfig, measure, table)
