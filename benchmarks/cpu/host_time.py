"""Host time of a decode step: what the engine's thread costs when the device costs nothing.

    python -m benchmarks.cpu.host_time

The policy's forward, its logits and the draw are replaced by tensors made beforehand, so that what is left is
scheduling, packing, launching, reading, detokenizing and delivering. Milliseconds of CPU time of the thread
that runs the engine, a step, medians over steps in which every row decodes. The last line is one JSON
document.
"""

from __future__ import annotations

import asyncio
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from benchmarks import common
from benchmarks.common import Document, spread_of, take_turns
from trimtab.guidance.heads.bank import HeadBank
from trimtab.kernels.guided_logits import GuidedDraw
from trimtab.server.engine.async_engine import AsyncEngine
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.policy import ServedPolicy, load_served
from trimtab.server.engine.request import TERMINAL, Request, SamplingParams

TOKENIZER = Path(__file__).parents[2] / "examples" / "toy" / "built" / "model"
PROMPT_TOKENS = 48
SIZES = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "max_position_embeddings": 4096,
}


@dataclass(frozen=True, slots=True)
class HostTimeConfig:
    """rows: concurrent sequences. steps: decode steps of each measurement. repeats: turns of each.
    async_depth: steps launched before the oldest one is read, as on a GPU.
    """

    rows: tuple[int, ...] = (1, 64, 288)
    steps: int = 100
    repeats: int = 3
    async_depth: int = 1
    seed: int = 0
    out: Path | None = None


class InstantDecode:
    """Stands where a compiled decode step would, with results made beforehand."""

    def __init__(self, max_num_rows: int, hidden_size: int, vocab_size: int, seed: int) -> None:
        rng = torch.Generator().manual_seed(seed)
        self._h = torch.zeros(max_num_rows, hidden_size)
        self._tokens = torch.randint(10, vocab_size, (max_num_rows,), generator=rng)
        self._zeros, self._no = torch.zeros(max_num_rows), torch.zeros(max_num_rows, dtype=torch.bool)

    @staticmethod
    def suits(ends: Sequence[int]) -> bool:
        return True

    def run(self, input_ids: Tensor, *_: Any) -> Tensor:
        return self._h[: len(input_ids)]

    def draw(self, z: Tensor, **_: Any) -> GuidedDraw:
        zero = self._zeros[: len(z)]
        return GuidedDraw(
            self._tokens[: len(z)], zero, zero, zero, zero, None, self._no[: len(z)], zero, zero
        )


@dataclass(slots=True)
class InstantPolicy(ServedPolicy):
    """A policy whose logits cost nothing."""

    def project(self, columns: Tensor) -> Tensor:
        return columns.new_zeros(1, 1).expand(len(columns), self.vocab_size)


def new_engine(config: HostTimeConfig, num_rows: int) -> Engine:
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    with tempfile.TemporaryDirectory() as folder:
        model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=len(tokenizer), **SIZES))
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        loaded = load_served(folder, name="instant", pack_weights=False)
    policy = InstantPolicy(
        **{field.name: getattr(loaded, field.name) for field in dataclasses.fields(loaded) if field.init}
    )
    decode = InstantDecode(num_rows, SIZES["hidden_size"], len(tokenizer), config.seed)
    options = EngineConfig(
        "instant",
        max_num_seqs=num_rows,
        compile="off",
        kv_cache_gib=0.1,
        async_depth=config.async_depth,  # type: ignore[arg-type]
    )
    bank = HeadBank.load((), policy.identity, device=policy.device, dtype=policy.dtype)
    return Engine(policy, bank, options.resolved("cpu"), decode)  # type: ignore[arg-type]


def new_requests(config: HostTimeConfig, num_rows: int) -> list[Request]:
    rng = torch.Generator().manual_seed(config.seed)
    prompts = torch.randint(10, 1000, (num_rows, PROMPT_TOKENS), generator=rng).tolist()
    # The first rows decode while the last prompts are prefilled, so the replies need some tokens more.
    num_tokens = config.steps + num_rows * PROMPT_TOKENS // 64 + 20
    sampling = SamplingParams(max_tokens=num_tokens, ignore_eos=True, seed=1)
    return [Request(str(i), tuple(prompt), sampling) for i, prompt in enumerate(prompts)]


class StepClock:
    """CPU time of the calling thread from the start of one step of full decode to the start of the next."""

    def __init__(self, engine: Engine, num_rows: int) -> None:
        self._engine, self._num_rows, self._step = engine, num_rows, engine.step
        self._started: float | None = None
        self.seconds: list[float] = []

    def __call__(self) -> list[Any]:
        now = time.thread_time()
        if self._started is not None:
            self.seconds.append(now - self._started)
        running = self._engine.scheduler.running
        is_full = len(running) == self._num_rows and all(c.num_drawn > 2 for c in running)
        self._started = time.thread_time() if is_full else None
        return self._step()


def without_delivery(engine: Engine, requests: list[Request], clock: StepClock) -> None:
    for request in requests:
        engine.add(request)
    while engine.has_work:
        clock()


def with_delivery(engine: Engine, requests: list[Request], clock: StepClock) -> None:
    engine.step = clock  # type: ignore[method-assign]
    service = AsyncEngine(lambda: engine)
    service.start()
    service.wait_until_loaded()

    async def read(request: Request) -> None:
        async for event in await service.submit(request):
            if isinstance(event, TERMINAL):
                return

    async def read_all() -> None:
        await asyncio.gather(*(read(request) for request in requests))

    asyncio.run(read_all())
    service.stop()


Way = Callable[[Engine, list[Request], StepClock], None]
WAYS: dict[str, Way] = {
    "engine": without_delivery,
    "engine and delivery": with_delivery,
}


def measure(config: HostTimeConfig) -> Document:
    """Milliseconds a step of each way at each number of rows."""
    found: Document = {name: {} for name in WAYS}
    for num_rows in config.rows:
        runs = {name: partial(_median_of_steps, config, num_rows, run) for name, run in WAYS.items()}
        for name, values in take_turns(runs, config.repeats, progress=f"{num_rows} rows").items():
            found[name][str(num_rows)] = spread_of(values).as_dict()
    return {"milliseconds": found}


def _median_of_steps(config: HostTimeConfig, num_rows: int, run: Way, turn: int) -> float:
    engine = new_engine(config, num_rows)
    clock = StepClock(engine, num_rows)
    run(engine, new_requests(config, num_rows), clock)
    return 1e3 * statistics.median(clock.seconds)


def table(found: Document) -> str:
    ways = found["milliseconds"]
    columns = ["ms a step", *(f"{rows} rows" for rows in next(iter(ways.values())))]
    return common.as_table(columns, [[name, *values.values()] for name, values in ways.items()])


if __name__ == "__main__":
    common.main(HostTimeConfig, measure, table)
