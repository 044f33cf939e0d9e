"""Sweeps of the growth benchmark: each varies one thing and times decode steps at every point."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.engine.speed import SteadyDecode, reply_tokens
from benchmarks.gpu.engine.subject import FORMS, ONE_OF_EACH, LlamaSize, Subject, random_prompts
from benchmarks.gpu.timing import Repeats, copy_bandwidth, time_calls
from trimtab.server.engine.request import Guidance


@dataclass(frozen=True, slots=True)
class GrowthSizes:
    """model, dtype, rank: of all sweeps but that over vocabularies, whose model is `small` at each of them.

    rows, contexts, heads, vocabs: what is varied. context_rows, head_rows, vocab_rows: concurrent replies
    while it is. prompt: tokens, where the context is not varied. steps: counted at every point.
    bandwidth_bytes, product: sizes of the copy and of the square product that floors are drawn from.
    """

    model: LlamaSize
    small: LlamaSize
    dtype: torch.dtype
    rank: int
    rows: tuple[int, ...]
    contexts: tuple[int, ...]
    heads: tuple[int, ...]
    vocabs: tuple[int, ...]
    context_rows: int
    head_rows: int
    vocab_rows: int
    prompt: int
    steps: int
    bandwidth_bytes: int
    product: int


ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTEXTS = (128, 256, 512, 1024, 2048, 4096, 8192)
HEADS = (1, 2, 4, 8, 16)
VOCABS = (8000, 16000, 32000, 64000, 128000, 152000)
MAX_LEN = CONTEXTS[-1] + 256

CPU = GrowthSizes(
    model=LlamaSize("Llama 31M", 512, 8, 8, 4, 1376, 8000, MAX_LEN),
    small=LlamaSize("Llama of two layers", 512, 2, 8, 4, 1376, 8000, 256),
    dtype=torch.float32,
    rank=64,
    rows=ROWS,
    contexts=CONTEXTS,
    heads=HEADS,
    vocabs=VOCABS,
    context_rows=4,
    head_rows=16,
    vocab_rows=8,
    prompt=32,
    steps=20,
    bandwidth_bytes=256 << 20,
    product=1536,
)
CUDA = GrowthSizes(
    model=LlamaSize("a quarter of Llama-3-8B", 4096, 8, 32, 8, 14336, 128256, MAX_LEN),
    small=LlamaSize("Llama of two layers", 4096, 2, 32, 8, 14336, 128256, 256),
    dtype=torch.bfloat16,
    rank=64,
    rows=ROWS,
    contexts=CONTEXTS,
    heads=HEADS,
    vocabs=VOCABS,
    context_rows=16,
    head_rows=64,
    vocab_rows=16,
    prompt=64,
    steps=40,
    bandwidth_bytes=1 << 30,
    product=8192,
)
TOY = GrowthSizes(
    model=LlamaSize("toy", 32, 2, 4, 2, 48, 300, 128),
    small=LlamaSize("toy", 32, 1, 4, 2, 48, 300, 64),
    dtype=torch.float32,
    rank=4,
    rows=(1, 3),
    contexts=(8, 32),
    heads=(1, 2),
    vocabs=(300, 400),
    context_rows=2,
    head_rows=3,
    vocab_rows=2,
    prompt=6,
    steps=3,
    bandwidth_bytes=1 << 20,
    product=64,
)
SIZES = {"cpu": CPU, "cuda": CUDA, "toy": TOY}


REPEATS = Repeats(3, 15)


@dataclass(frozen=True, slots=True)
class Rates:
    """bytes_per_second: of a copy or of a matrix-vector product, whichever moved more. flops_per_second: of
    a large product in the model's dtype. Both measured in the run whose floors they give."""

    bytes_per_second: float
    flops_per_second: float


@dataclass(frozen=True, slots=True)
class Floor:
    """Milliseconds of one decode step."""

    memory: float
    arithmetic: float

    @property
    def milliseconds(self) -> float:
        return max(self.memory, self.arithmetic)


def measure_rates(device: torch.device, sizes: GrowthSizes) -> Rates:
    n, dtype = sizes.product, sizes.dtype
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    product = time_calls(device, [partial(torch.matmul, a, b)], REPEATS)
    width = 4096
    matrix = torch.zeros(sizes.bandwidth_bytes // (width * dtype.itemsize), width, device=device, dtype=dtype)
    vector = torch.zeros(width, device=device, dtype=dtype)
    reading = time_calls(device, [partial(torch.mv, matrix, vector)], REPEATS)
    read = matrix.numel() * matrix.itemsize / (1e-6 * reading.median)
    return Rates(
        max(read, copy_bandwidth(device, sizes.bandwidth_bytes, REPEATS)),
        2 * n**3 / (1e-6 * product.median),
    )


def step_floor(rates: Rates, subject: Subject, num_rows: int, context: int, heads: tuple[str, ...]) -> Floor:
    """heads: the names of those in use, all of one size. Each is read once; a row multiplies by one."""
    size = subject.size
    head_bytes = sum(subject.head_bytes(name) for name in heads)
    num_bytes = subject.weight_bytes + head_bytes + subject.cache_bytes(num_rows, context)
    one_head = head_bytes / max(len(heads), 1)
    products = 2 * num_rows * (subject.weight_bytes + one_head) / subject.model.dtype.itemsize
    attention = 4 * num_rows * context * size.hidden * size.layers
    return Floor(
        1e3 * num_bytes / rates.bytes_per_second, 1e3 * (products + attention) / rates.flops_per_second
    )


TURNS = 2
STRENGTH = 1.0
Prompts = Sequence[tuple[int, ...]]
Series = Mapping[str, Sequence[Guidance]]  # by name: what each row asks for


@dataclass(frozen=True, slots=True)
class Point:
    """One place of a sweep. steps: by series, milliseconds of a decode step: one token for every row."""

    x: int
    rows: int
    steps: dict[str, float]
    floor: Floor

    def as_dict(self) -> dict[str, Any]:
        def per_token(milliseconds: float) -> float:
            return float(f"{milliseconds / self.rows:.4g}")

        return {
            "x": self.x,
            "rows": self.rows,
            "milliseconds_per_token": {name: per_token(value) for name, value in self.steps.items()},
            "floor": per_token(self.floor.milliseconds),
            "floor_is": "memory" if self.floor.memory >= self.floor.arithmetic else "arithmetic",
        }


class _Bench:
    """One engine as a server would have it, for so many rows."""

    def __init__(
        self,
        device: torch.device,
        sizes: GrowthSizes,
        model: LlamaSize,
        num_rows: int,
        forms: Mapping[str, str] = ONE_OF_EACH,
    ) -> None:
        gc.collect()
        self._num_steps = sizes.steps
        self.subject = Subject(model, device, sizes.dtype, sizes.rank, forms)
        self._engine = self.subject.engine(max_num_seqs=num_rows)

    def time_steps(self, prompts: Prompts, series: Series) -> dict[str, float]:
        """By series, the median of a decode step in milliseconds; the series take turns."""
        seconds: dict[str, list[float]] = {name: [] for name in series}
        budget = self._engine.config.token_budget
        max_tokens = reply_tokens(self._num_steps, len(prompts), len(prompts[0]), budget)
        for _ in range(TURNS):
            for name, guidance in series.items():
                run = SteadyDecode(self._engine, prompts, guidance, max_tokens)
                seconds[name] += run.steps(self._num_steps)
                assert all((kl > 0) == is_guided for is_guided, kl in run.finish()), (
                    "the rule ran where asked for"
                )
        return {name: 1e3 * statistics.median(times) for name, times in seconds.items()}


def _plain_and_guided(num_rows: int) -> dict[str, list[Guidance]]:
    guided = {form: [Guidance(STRENGTH, ((form, 1.0),))] * num_rows for form in FORMS}
    return {"plain": [Guidance()] * num_rows} | guided


def short_context(sizes: GrowthSizes) -> int:
    """Room for the replies of the sweeps that leave the context alone."""
    return 4 * (sizes.prompt + sizes.steps) + 64


def sweep_rows(device: torch.device, sizes: GrowthSizes, rates: Rates) -> Iterator[Point]:
    model = replace(sizes.model, max_len=short_context(sizes))
    bench = _Bench(device, sizes, model, max(sizes.rows))
    for rows in sizes.rows:
        prompts = random_prompts(model, [sizes.prompt] * rows)
        steps = bench.time_steps(prompts, _plain_and_guided(rows))
        yield Point(rows, rows, steps, step_floor(rates, bench.subject, rows, sizes.prompt, ()))


def sweep_contexts(device: torch.device, sizes: GrowthSizes, rates: Rates) -> Iterator[Point]:
    """A longer prompt begins like a shorter one, so that its beginning is still in the cache."""
    rows = sizes.context_rows
    bench = _Bench(device, sizes, sizes.model, rows)
    longest = random_prompts(sizes.model, [max(sizes.contexts)] * rows)
    for context in sizes.contexts:
        prompts = [prompt[:context] for prompt in longest]
        steps = bench.time_steps(prompts, _plain_and_guided(rows))
        yield Point(context, rows, steps, step_floor(rates, bench.subject, rows, context, ()))


def sweep_heads(device: torch.device, sizes: GrowthSizes, rates: Rates) -> Iterator[Point]:
    """Every row uses one head; the rows of a batch use so many different ones."""
    rows = sizes.head_rows
    model = replace(sizes.model, max_len=short_context(sizes))
    forms = {f"{form}-{i}": form for form in FORMS for i in range(max(sizes.heads))}
    bench = _Bench(device, sizes, model, rows, forms)
    prompts = random_prompts(model, [sizes.prompt] * rows)
    for count in sizes.heads:
        series = {
            form: [Guidance(STRENGTH, ((f"{form}-{row % count}", 1.0),)) for row in range(rows)]
            for form in FORMS
        }
        steps = bench.time_steps(prompts, {"plain": [Guidance()] * rows} | series)
        used = tuple(f"lowrank-{i}" for i in range(min(count, rows)))
        yield Point(count, rows, steps, step_floor(rates, bench.subject, rows, sizes.prompt, used))


def sweep_vocabularies(device: torch.device, sizes: GrowthSizes, rates: Rates) -> Iterator[Point]:
    rows = sizes.vocab_rows
    for vocab in sizes.vocabs:
        model = replace(sizes.small, vocab=vocab)
        bench = _Bench(device, sizes, model, rows)
        prompts = random_prompts(model, [sizes.prompt] * rows)
        steps = bench.time_steps(prompts, _plain_and_guided(rows))
        yield Point(vocab, rows, steps, step_floor(rates, bench.subject, rows, sizes.prompt, ()))


@dataclass(frozen=True, slots=True)
class Sweep:
    """run: the points one after another, as many as `places` has. fixed: what stays the same, in words."""

    axis: str
    run: Callable[[torch.device, GrowthSizes, Rates], Iterator[Point]]
    places: Callable[[GrowthSizes], Sequence[int]]
    fixed: Callable[[GrowthSizes], str]


SWEEPS = {
    "rows": Sweep(
        "rows in a batch",
        sweep_rows,
        lambda sizes: sizes.rows,
        lambda sizes: f"{sizes.model.name}, context {sizes.prompt}…{sizes.prompt + sizes.steps}",
    ),
    "context": Sweep(
        "tokens of context",
        sweep_contexts,
        lambda sizes: sizes.contexts,
        lambda sizes: f"{sizes.model.name}, {sizes.context_rows} rows",
    ),
    "heads": Sweep(
        "different heads in a batch",
        sweep_heads,
        lambda sizes: sizes.heads,
        lambda sizes: f"{sizes.model.name}, {sizes.head_rows} rows; floor: with the low-rank heads",
    ),
    "vocabulary": Sweep(
        "tokens in the vocabulary",
        sweep_vocabularies,
        lambda sizes: sizes.vocabs,
        lambda sizes: f"{sizes.small.name}, {sizes.vocab_rows} rows",
    ),
}
