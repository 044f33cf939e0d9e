"""Ceiling of the gold task: tells what the best policy could score at a price.

`python -m examples.gold.ceiling runs/gold/judge-plain-0.parquet runs/gold/judge-plain-1.parquet`

No policy scores more at its KL than a tilt of the plain one by the reward itself, π₀ e^{r/τ}. That tilt's
score and KL are read from plain replies, weighted by e^{r/τ}; of few replies to a prompt both are too low.
What it owes to replies of few words is told by rewards that are no higher for them than the mean.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from trimtab.guidance.data.load import load_rollouts
from trimtab.guidance.errors import told_in_one_line
from trimtab.guidance.evaluation.table import Table, show
from trimtab.guidance.statistics import Estimate, Floats, interval, resample_prompts
from trimtab.server.flags import parse

KLS = (1.0, 2.0, 4.0)
SHORT = (10, 20, 40, 100)
_PRICES = np.geomspace(30, 0.2, 200)  # τ, gold per nat


@dataclass(frozen=True)
class CeilingConfig:
    """Tells the score of the best policy at 1, 2 and 4 nats, read off plain replies.

    replies: files of scored plain replies to the same prompts, which `trimtab rollouts` wrote.
    """

    replies: tyro.conf.Positional[tuple[Path, ...]]

    def __post_init__(self) -> None:
        if not self.replies:
            raise ValueError("replies: name a file or more")


def load_rewards(*replies: Path) -> tuple[Floats, Floats]:
    """Gold of scored rollouts, and their words, [prompts, replies to each].

    Raises DataError where they cannot be read.
    """
    by_prompt: defaultdict[object, list[tuple[float, int]]] = defaultdict(list)
    for path in replies:
        for row in load_rollouts(path).rows:
            assert row.reward is not None
            by_prompt[row.prompt].append((row.reward, len(row.completion.split())))
    rewards, words = np.array(list(by_prompt.values()), dtype=np.float64).transpose(2, 0, 1)
    return rewards, words


def tilted(rewards: Floats, price: float) -> tuple[Floats, Floats]:
    """KL and mean reward, [prompts] each, of the tilt e^{r/price} of each prompt's replies [prompts, N].

    By hand: of rewards 0 and ln 3 at price 1 the weights are ¼ and ¾: the reward is ¾ ln 3, and the KL
    ¼ ln ½ + ¾ ln 3⁄2 = 0.131.
    """
    scaled = rewards / price
    weights = np.exp(scaled - scaled.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    logs = np.log(np.maximum(weights * rewards.shape[1], np.finfo(float).tiny))
    return (weights * logs).sum(1), (weights * rewards).sum(1)


def ceiling(rewards: Floats, kls: Sequence[float] = KLS, *, seed: int = 0) -> list[Estimate | None]:
    """At each KL the highest mean reward; None where so few replies reach none. Intervals are bootstrapped
    over prompts."""
    kl, gold = (np.array(column) for column in zip(*(tilted(rewards, t) for t in _PRICES), strict=True))
    draws = resample_prompts(rewards.shape[0], seed=seed)
    many = np.array([_read(kl[:, d].mean(1), gold[:, d].mean(1), kls) for d in draws])
    means = _read(kl.mean(1), gold.mean(1), kls)
    return [
        None if np.isnan(m) else interval(float(m), column) for m, column in zip(means, many.T, strict=True)
    ]


def _read(kl: Floats, gold: Floats, at: Sequence[float]) -> Floats:
    """The prices are so close to each other that what lies between them is read off a line."""
    return np.interp(at, kl, gold, right=np.nan)


def table(rewards: Floats) -> Table:
    """With all replies to each prompt, and with fewer, which says how far the numbers are still too low."""
    num = rewards.shape[1]
    rows = []
    for size in sorted({size for size in (num // 4, num // 2, num) if size > 1}):
        some = rewards[:, :size]
        rows.append((str(size), *(show(estimate) for estimate in ceiling(some))))
    columns = ("plain replies to a prompt", *(f"at {kl:g} nats" for kl in KLS))
    return Table("ceiling", "Ceiling", columns, tuple(rows))


def table_of_words(rewards: Floats, words: Floats) -> Table:
    """With all replies, where those of fewer words than so many may not gain by their reward."""
    rows = []
    for least in SHORT:
        capped = np.where(words < least, np.minimum(rewards, rewards.mean()), rewards)
        rows.append((str(least), *(show(estimate) for estimate in ceiling(capped))))
    columns = ("words of a reply that may gain, at least", *(f"at {kl:g} nats" for kl in KLS))
    return Table("words", "Ceiling without short replies", columns, tuple(rows))


def main(args: list[str] | None = None) -> None:
    with told_in_one_line("ceiling"):
        given = sys.argv[1:] if args is None else args
        config = parse(CeilingConfig, "python -m examples.gold.ceiling", given)
        found, counted = load_rewards(*config.replies)
    print(f"mean {found.mean():.2f}, standard deviation within a prompt {found.std(1).mean():.2f}\n")
    print(table(found).to_markdown())
    print(table_of_words(found, counted).to_markdown())


if __name__ == "__main__":
    main()
