"""The sweeps: each varies one thing and times decode steps, plain and guided, at every point."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.gpu.engine.steady import SteadyDecode, reply_tokens
from benchmarks.gpu.engine.subject import FORMS, ONE_OF_EACH, LlamaSize, Subject, random_prompts
from benchmarks.growth.floor import Floor, Rates, step_floor
from benchmarks.growth.sizes import GrowthSizes
from trimtab.server.engine.request import Guidance

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
        self.subject = Subject(model, device, sizes.dtype, sizes.rank, forms, pack_weights=True)
        self._engine = self.subject.engine(max_num_seqs=num_rows, compile=sizes.compile)

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
