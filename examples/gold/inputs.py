"""Inputs of an advantage: what another layer, or a memory of the reply, adds to h.

`python -m examples.gold.inputs --rollouts runs/gold/replies.parquet`
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from trimtab.guidance.data.items import RolloutItem
from trimtab.guidance.errors import told_in_one_line
from trimtab.guidance.evaluation.table import Table, show, show_difference
from trimtab.guidance.files import write_json
from trimtab.guidance.heads.forms import MEMORIES
from trimtab.guidance.heads.manifest import ScalarPart
from trimtab.guidance.policy import Policy, load_policy
from trimtab.guidance.statistics import Floats, interval, resample_prompts
from trimtab.guidance.training.config import TrainConfig
from trimtab.guidance.training.examples import load_examples
from trimtab.guidance.training.objectives.rollouts import returns_of
from trimtab.server.flags import parse

Input = Literal["h", "layers", "mean", "gru"]
INPUTS: tuple[Input, ...] = get_args(Input)
KL = 2.0  # nats a reply
_UNITS = 64
_BATCH = 64


@dataclass(frozen=True)
class InputsConfig:
    """Trains a low-rank advantage, by Monte Carlo as the gold task's reference, on h alone; on h beside the
    output of the policy's middle layer (`layers`); and on h beside what 64 numbers remember of the reply's
    states (`mean`, `gru`). Tells, on replies to held-out prompts, what each would gain at a price of 2 nats
    were its tilt a small one: √(2 KL ÷ E Σ Var A) · E Σ Ā_t G_t.

    rollouts: scored plain replies. model: the policy's folder. discount: of the rewards that train; what is
    gained counts them whole.
    """

    rollouts: Path
    model: Path = Path("../shared/models/stories656K")
    out: Path = Path("runs/gold/inputs.json")
    seeds: tuple[int, ...] = (0, 1, 2)
    inputs: tuple[Input, ...] = INPUTS
    discount: float = 0.95
    rank: int = 128
    epochs: int = 4
    learning_rate: float = 1e-3


@dataclass(frozen=True, slots=True)
class Reply:
    """h, middle: [T, d], where each of T tokens is predicted; the middle layer's output at length √d.
    Rewards-to-go, f32[T]: as discounted for training, and whole."""

    h: Tensor
    middle: Tensor
    tokens: Tensor
    discounted: Tensor
    whole: Tensor


class Advantage(nn.Module):
    """A(s, ·) = up φ(down x + recall m), and a value of the same inputs: the baseline of its regression."""

    def __init__(self, kind: str, hidden_size: int, vocab_size: int, rank: int) -> None:
        super().__init__()
        self.kind = kind
        width = 2 * hidden_size if kind == "layers" else hidden_size
        self.down = nn.Parameter(torch.randn(rank, width) * width**-0.5)
        self.up = nn.Parameter(torch.zeros(vocab_size, rank))
        part = ScalarPart(form=kind, units=_UNITS) if kind in MEMORIES else None
        self.memory = None if part is None else MEMORIES[kind](part, hidden_size)
        self.recall = None if part is None else nn.Parameter(torch.randn(rank, _UNITS) * _UNITS**-0.5)
        last = nn.Linear(256, 1)
        nn.init.zeros_(last.weight)
        self.value = nn.Sequential(nn.Linear(rank, 256), nn.SiLU(), last)

    def inner(self, replies: Sequence[Reply]) -> Tensor:
        """φ [N, rank], replies end to end."""
        h = torch.cat([reply.h for reply in replies]).float()
        if self.kind == "layers":
            h = torch.cat([h, torch.cat([reply.middle for reply in replies]).float()], 1)
        hidden = h @ self.down.T
        if self.memory is not None and self.recall is not None:
            rows = pad_sequence([reply.h.float() for reply in replies], batch_first=True)
            remembered, _ = self.memory(rows, rows.new_zeros(len(rows), self.memory.state_size))
            lengths = torch.tensor([len(reply.h) for reply in replies])
            hidden = hidden + remembered[torch.arange(rows.shape[1]) < lengths[:, None]] @ self.recall.T
        return F.silu(hidden)


@torch.no_grad()
def read(policy: Policy, items: Sequence[RolloutItem], discount: float) -> list[Reply]:
    """By the policy's own forward pass, in padded batches."""
    found: dict[int, Reply] = {}
    longest = policy.model.config.max_position_embeddings
    order = sorted(range(len(items)), key=lambda i: items[i].reply.num_drawn)
    for start in range(0, len(order), _BATCH):
        some = order[start : start + _BATCH]
        rows = [torch.tensor([*items[i].reply.prompt_ids, *items[i].reply.reply_ids][:longest]) for i in some]
        states = policy.model.base_model(pad_sequence(rows, batch_first=True), output_hidden_states=True)
        middle = states.hidden_states[len(states.hidden_states) // 2]
        for row, i in enumerate(some):
            item, before = items[i], len(items[i].reply.prompt_ids) - 1
            at = slice(before, before + item.reply.num_drawn)
            found[i] = Reply(
                states.last_hidden_state[row, at].half(),
                F.rms_norm(middle[row, at], middle.shape[-1:]).half(),
                torch.tensor(item.reply.reply_ids[: item.reply.num_drawn]),
                returns_of(item, discount),
                returns_of(item, 1.0),
            )
    return [found[i] for i in range(len(items))]


def train(kind: str, seed: int, replies: Sequence[Reply], policy: Policy, config: InputsConfig) -> Advantage:
    torch.manual_seed(seed)
    part = Advantage(kind, policy.identity.hidden_size, policy.vocab_size, config.rank)
    steps = config.epochs * (len(replies) // _BATCH)
    optimiser = torch.optim.AdamW(part.parameters(), lr=config.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1.0, (step + 1) / (0.05 * steps)) * (1 - step / steps)
    )
    for batch in _batches(replies, config.epochs, seed):
        inner = part.inner(batch)
        tokens, target = (torch.cat([getattr(r, name) for r in batch]) for name in ("tokens", "discounted"))
        drawn = (F.embedding(tokens, part.up) * inner).sum(-1)
        loss = (part.value(inner)[:, 0] + drawn - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(part.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return part


def _batches(replies: Sequence[Reply], epochs: int, seed: int) -> Iterator[list[Reply]]:
    draw = np.random.default_rng(seed)
    for _ in range(epochs):
        order = draw.permutation(len(replies))
        for start in range(0, len(order) - _BATCH + 1, _BATCH):
            yield [replies[i] for i in order[start : start + _BATCH]]


@torch.no_grad()
def sums(part: Advantage, replies: Sequence[Reply], policy: Policy) -> Floats:
    """Σ_t Ā_t (G_t − mean) and Σ_t Var_{π₀} A of each reply, [2, B]."""
    centre = torch.cat([reply.whole for reply in replies]).mean()
    found = []
    for reply in replies:
        inner, base = part.inner([reply]), policy.logits(reply.h.float()).softmax(-1)
        mean = base @ part.up
        drawn = ((part.up[reply.tokens] - mean) * inner).sum(-1)
        spread = (base * (inner @ part.up.T).square()).sum(-1) - (inner * mean).sum(-1).square()
        found.append([(drawn * (reply.whole - centre)).sum(), spread.sum()])
    return np.array(found, dtype=np.float64).T


def gain(pairs: Floats) -> Floats:
    """Gold at KL nats to first order, of sums [2, …, B]. By hand: Σ Ā G = 3 and Σ Var A = 4 a reply gain
    3 · √(2 · 2 ÷ 4) = 3."""
    covered, spread = pairs.mean(-1)
    gained: Floats = covered * np.sqrt(2 * KL / np.maximum(spread, 1e-30))
    return gained


def compare(found: dict[str, list[Floats]], prompts: Sequence[int]) -> Table:
    """found: for each input the sums of each seed. prompts: whose reply each is. Differences are from the
    first input's, over the same resamples of prompts."""
    number = np.unique(np.asarray(prompts), return_inverse=True)[1]
    draws = resample_prompts(int(number.max()) + 1)
    drawn = {
        kind: np.mean([_resampled(one, number, draws) for one in seeds], 0) for kind, seeds in found.items()
    }
    means = {kind: float(np.mean([gain(one) for one in seeds])) for kind, seeds in found.items()}
    first = next(iter(found))
    rows = []
    for kind, seeds in found.items():
        each = ", ".join(f"{gain(one):.2f}" for one in seeds)
        difference = interval(means[kind] - means[first], drawn[kind] - drawn[first])
        told = "" if kind == first else show_difference(difference)
        rows.append((kind, f"{show(interval(means[kind], drawn[kind]))} {{{each}}}", told))
    columns = ("reads", f"gain at {KL:g} nats, to first order", f"from {first}")
    return Table("inputs", "Inputs of an advantage", columns, tuple(rows))


def _resampled(pairs: Floats, number: np.ndarray, draws: np.ndarray) -> Floats:
    totals = np.stack([np.bincount(number, weights=row) for row in (*pairs, np.ones(pairs.shape[1]))])
    covered, spread, count = totals[:, draws].sum(-1)
    gained: Floats = covered / count * np.sqrt(2 * KL / np.maximum(spread / count, 1e-30))
    return gained


def main(args: list[str] | None = None) -> None:
    with told_in_one_line("inputs"):
        run(parse(InputsConfig, "python -m examples.gold.inputs", sys.argv[1:] if args is None else args))


def run(config: InputsConfig) -> None:
    policy = load_policy(config.model)
    named = TrainConfig(
        name="inputs",
        model=str(config.model),
        rollouts=config.rollouts,
        rows="text",
        parts=("value",),
        head_folder=config.out.parent,
        run_folder=config.out.parent,
    )
    split = load_examples(named, policy).rollouts
    learned, held_out = (read(policy, side, config.discount) for side in (split.train, split.held_out))
    prompts = [hash(item.reply.prompt_ids) for item in split.held_out]
    found: dict[str, list[Floats]] = {}
    for kind in config.inputs:
        for seed in config.seeds:
            began = time.monotonic()
            part = train(kind, seed, learned, policy, config)
            found.setdefault(kind, []).append(sums(part, held_out, policy))
            print(
                f"{kind}, seed {seed}: {gain(found[kind][-1]):.3f} in {time.monotonic() - began:.0f} s",
                flush=True,
            )
    table = compare(found, prompts)
    write_json(
        config.out, {"columns": table.columns, "rows": table.rows, "replies": [len(learned), len(held_out)]}
    )
    print(table.to_markdown())


if __name__ == "__main__":
    main()
