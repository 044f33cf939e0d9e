"""Rehearsal of training: times steps on made-up rows, to tell beforehand how long the real ones will take."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.guidance.data.items import Item, PairItem, RolloutItem
from trimtab.guidance.features.source import Extract, FeatureCache, Positions
from trimtab.guidance.heads.forms import Advantage, Head, LinearScalar
from trimtab.guidance.heads.manifest import Parts
from trimtab.guidance.policy import Policy
from trimtab.guidance.text.encoding import EncodedReply
from trimtab.guidance.training.config import PartName, TrainConfig
from trimtab.guidance.training.figures import HeldOutLoss
from trimtab.guidance.training.methods import Method
from trimtab.guidance.training.plan import methods_of
from trimtab.guidance.training.scale import fit_scale, most_positions

_ITEMS, _POSITIONS = 8, 64
"""Rows of a rehearsed step, at most, and drawn positions of a rehearsed search for the scale."""


@dataclass(frozen=True, slots=True)
class TrainingSize:
    """rollouts, pairs: that training is given, held-out ones among them. Tokens are of one reply."""

    rollouts: int
    rollout_tokens: int
    pairs: int = 0
    pair_tokens: int = 1


@dataclass(frozen=True, slots=True)
class _Rehearsed:
    """Seconds: once, of a step and of a loss without gradient, for each row; and of one update of weights."""

    once: float
    step: float
    loss: float
    update: float


def rehearse(config: TrainConfig, policy: Policy, size: TrainingSize) -> float:
    """Seconds that `train_head` will take at most for value, advantage and the scale, from steps of each that
    are taken here, on replies of random tokens and states. A linear reward is solved in less than it takes to
    tell. Starting, reading files and figures of few rows are not counted.

    Raises DataError as methods_of. Files need not be there.
    """
    with torch.random.fork_rng(devices=[]):  # what comes after must not depend on it
        return _rehearse_all(config, policy, size)


def _rehearse_all(config: TrainConfig, policy: Policy, size: TrainingSize) -> float:
    plan = methods_of(config)
    features = FeatureCache(policy, _noise(policy), show_progress=False)
    identity = policy.identity
    own = {part: getattr(config, part).part() for part in config.parts}
    head = Head(Parts(**own), identity.hidden_size, identity.vocab_size).to(policy.device)
    quiet = dataclasses.replace(config, show_progress=False)
    held_out = config.held_out
    seconds = 0.0
    for part, method in plan.items():
        if isinstance(getattr(head, part), LinearScalar) and part == "reward":
            continue
        is_pairs = method.rows == "pairs"
        rows = size.pairs if is_pairs else size.rollouts
        items = _made_up(policy, size, is_pairs=is_pairs, num=min(rows, _ITEMS, _batch_size(config, part)))
        found = _rehearse(part, method, head, quiet, features, items)
        seconds += _total(config, part, found, round(rows * (1 - held_out)), math.ceil(rows * held_out))
    if head.advantage is not None and "advantage" in plan:
        positions = math.ceil(size.rollouts * held_out) * size.rollout_tokens
        seconds += min(positions, most_positions(policy)) * _search(head.advantage, features)
    return seconds


def _search(advantage: Advantage, features: FeatureCache) -> float:
    """Seconds that the scale takes, for each position that it is sought on."""
    torch.nn.init.normal_(advantage.up)  # one that says 0 has no scale
    reply = _reply(features.policy, _POSITIONS)
    return _seconds(lambda: fit_scale(advantage, features, [reply], is_tilt=False)) / _POSITIONS


def _total(config: TrainConfig, part: PartName, found: _Rehearsed, train: int, held_out: int) -> float:
    """Held-out rows are asked after each epoch, and twice in the end: with the head, and without."""
    epochs = getattr(config, part).optimiser.epochs
    steps = math.ceil(train / _batch_size(config, part))
    training = train * found.once + epochs * (train * found.step + steps * found.update)
    return training + (math.ceil(epochs) + 2) * held_out * found.loss


def _rehearse(
    part: PartName,
    method: Method,
    head: Head,
    config: TrainConfig,
    features: FeatureCache,
    items: Sequence[Item],
) -> _Rehearsed:
    own = getattr(config, part)
    objective, loss = method.objective(head, config, features), method.loss.bind(own)
    optimiser = torch.optim.AdamW(objective.parameters(), lr=0.0)

    def step() -> None:
        batch = {name: x.to(features.policy.device) for name, x in objective.collate(items).items()}
        scores, _ = objective(**batch)
        loss(**scores).per_example.mean().backward()

    held_out = HeldOutLoss(objective, loss, items, own.optimiser.batch_size)
    held_out.per_item()  # what runs first is slower than any other
    exact = _seconds(held_out.per_item)  # before anything is prepared, as only rows that are trained on are
    once = _seconds(lambda: objective.prepare(items))
    step()
    optimiser.step()
    stepped, updated = _seconds(step), _seconds(optimiser.step)
    return _Rehearsed(once / len(items), stepped / len(items), exact / len(items), updated)


def _seconds(work: Callable[[], object]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def _batch_size(config: TrainConfig, part: PartName) -> int:
    size: int = getattr(config, part).optimiser.batch_size
    return size * config.gradient_accumulation


def _made_up(policy: Policy, size: TrainingSize, *, is_pairs: bool, num: int) -> list[Item]:
    if is_pairs:
        sides = ([_reply(policy, size.pair_tokens) for _ in range(num)] for _ in range(2))
        return [PairItem(*pair) for pair in zip(*sides, strict=True)]
    return [RolloutItem(_reply(policy, size.rollout_tokens), reward=float(n)) for n in range(num)]


def _reply(policy: Policy, num_tokens: int) -> EncodedReply:
    return EncodedReply((0,), tuple(torch.randint(policy.vocab_size, (num_tokens,)).tolist()))


def _noise(policy: Policy) -> Extract:
    """In the place of the policy: states that nothing was read for."""

    def states(replies: Sequence[EncodedReply], positions: Positions | None) -> Iterator[tuple[int, Tensor]]:
        for index, reply in enumerate(replies):
            yield (
                index,
                torch.randn(len(reply.reply_ids) + 1, policy.identity.hidden_size).to(policy.lm_head.dtype),
            )

    return states
