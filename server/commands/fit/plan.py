"""Plan of `trimtab fit`: tells beforehand how many replies, tokens, bytes and minutes it will take."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from rich.console import Console
from rich.table import Table

from trimtab.guidance.errors import DataError
from trimtab.guidance.policy import Policy
from trimtab.guidance.text.encoding import ReplyEncoder
from trimtab.guidance.text.message import Prompt
from trimtab.guidance.text.prompt_form import Rows
from trimtab.server.commands.fit.rehearsal import TrainingSize
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.engine import Engine
from trimtab.server.rollouts.sample import EncodedPrompt, SamplePlan, sample_rollouts

_PROBED_TOKENS = (1, 9)  # of a reply; the difference is what reading the prompts does not cost
_READ_FASTER = 3  # times, tokens that are only read, at the least


@dataclass(frozen=True, slots=True)
class Amounts:
    """Of the stages that are left, at most. replies: sampled to train on. pairs: read. prompt_tokens,
    pair_tokens: of a pair's prompt and of its replies together, on average. trained: None where that is
    done. judged: replies of the evaluation."""

    replies: int
    max_tokens: int
    pairs: int
    prompt_tokens: float
    pair_tokens: float
    trained: TrainingSize | None
    judged: int
    hidden_size: int
    itemsize: int

    @property
    def num_bytes(self) -> int:
        """Features; of replies they lie in parts too, until all are there."""
        positions = 2 * self.replies * (self.max_tokens + 1) + self.pairs * self.pair_tokens
        return int(positions * self.hidden_size * self.itemsize)


def measure_speed(
    policy: Policy, config: EngineConfig, prompts: Sequence[Prompt], amounts: Amounts, rows: Rows
) -> float:
    """Tokens a second of replies side by side, as far as there will be so many."""
    engine = Engine.from_config(replace(config, heads=()), policy=policy)
    encoder = ReplyEncoder(policy.tokenizer, rows, end_ids=policy.end_ids, extra_keys="ignore")
    num_rows = min(config.max_num_seqs, max(amounts.replies, amounts.judged, 1))
    some, encoded = prompts[: max(1, num_rows // 8)], []
    for number, prompt in enumerate(some):
        with suppress(DataError):  # of a row that sampling skips
            ids = encoder.prompt_ids(prompt)
            encoded.append(EncodedPrompt(number, prompt, ids, encoder.end_id(prompt)))
    plan = SamplePlan(num_replies=max(1, num_rows // len(some)))
    _timed(engine, encoded, replace(plan, max_tokens=1))  # a first step is slower than any other
    (few, short), (many, long) = (
        _timed(engine, encoded, replace(plan, max_tokens=n)) for n in _PROBED_TOKENS
    )
    # On a busy machine the longer probe may have been the faster one.
    return (many - few) / (long - short) if many > few and long > 1.2 * short else many / long


def _timed(engine: Engine, prompts: Sequence[EncodedPrompt], plan: SamplePlan) -> tuple[int, float]:
    """Tokens that were drawn, and the seconds that it took."""
    started = time.monotonic()
    rows = sample_rollouts(engine, prompts, plan)
    return sum(len(row.token_ids) for row in rows), time.monotonic() - started


def plan_table(amounts: Amounts, speed: float, training: float) -> str:
    """speed: tokens a second. training: seconds."""
    table = Table(
        "to do", "how much", "tokens", "about", title="plan: what is left, at most", title_justify="left"
    )
    sampled, judged = amounts.replies * amounts.max_tokens, amounts.judged * amounts.max_tokens
    read = int(amounts.pairs * (amounts.prompt_tokens + amounts.pair_tokens))
    if amounts.replies:
        table.add_row("sample replies", f"{amounts.replies} replies", f"{sampled}", _minutes(sampled / speed))
    if amounts.pairs:
        table.add_row(
            "read pairs", f"{amounts.pairs} pairs", f"{read}", _minutes(read / speed / _READ_FASTER)
        )
    if trained := amounts.trained:
        if not trained.pairs:
            table.add_row("score replies", f"{trained.rollouts} replies", "", "its bar says")
        positions = trained.rollouts * trained.rollout_tokens + 2 * trained.pairs * trained.pair_tokens
        of_pairs = f", {trained.pairs} pairs" if trained.pairs else ""
        table.add_row("train", f"{trained.rollouts} replies{of_pairs}", f"{positions}", _minutes(training))
    table.add_row("judge", f"{amounts.judged} replies", f"{judged}", _minutes(judged / speed))
    total = (sampled + judged + read / _READ_FASTER) / speed + training
    table.add_row("all", f"{amounts.num_bytes / 1e9:.2f} GB of disk", "", _minutes(total))
    console = Console(width=100)
    with console.capture() as shown:
        console.print(table)
    steps = ", and steps of training" if amounts.trained else ""
    return f"{shown.get()}{speed:.0f} tokens/s were measured{steps}"


def _minutes(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
