"""Figures of a trained part on held-out rows, of which some say when to stop and the others judge: its loss
beside that of one that knows nothing, and how well it orders replies, each with a 95 % interval.
trimtab.guidance.heads.verdict says in words what they show."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from trimtab.guidance.data.items import RolloutItem, number_prompts, prompt_of
from trimtab.guidance.heads.verdict import MIN_JUDGED
from trimtab.guidance.losses import Loss
from trimtab.guidance.statistics import (
    estimate_correlation,
    estimate_mean,
    estimate_ordering,
    estimate_share,
)
from trimtab.guidance.training.log import TrainingLog
from trimtab.guidance.training.objectives.base import Objective

MIN_TO_SPLIT = 40
"""Held-out prompts from which half of them only validate, and judge nothing."""
MAX_TO_VALIDATE = 256
"""Prompts that only validate, at most."""
MIN_TO_STOP = 5
"""Rows, below which their loss says nothing of when to stop."""
_MIN_OF_A_KIND = 5
T = TypeVar("T")
Figures = dict[str, float]
Sides = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Validation:
    """prompts: whose rows validate. is_shared: they are too few to be spared, and judge as well, which
    flatters what was chosen by them."""

    prompts: frozenset[tuple[int, ...]] = frozenset()
    is_shared: bool = False

    def stopping(self, items: Sequence[T]) -> list[T]:
        """Those that say when to stop."""
        kept = [item for item in items if prompt_of(item) in self.prompts]
        return kept if len(kept) >= MIN_TO_STOP else []

    def judging(self, items: Sequence[T]) -> list[T]:
        """Those that judge a part which was stopped by the others."""
        return [item for item in items if self.is_shared or prompt_of(item) not in self.prompts]


def choose_validation(items: Sequence[Any], seed: int) -> Validation:
    """Of all held-out items: half of the prompts, at most MAX_TO_VALIDATE; all of fewer than MIN_TO_SPLIT."""

    def rank(prompt: tuple[int, ...]) -> bytes:
        return hashlib.sha256(repr(("validation", seed, prompt)).encode()).digest()

    prompts = sorted({prompt_of(item) for item in items}, key=rank)
    if len(prompts) < MIN_TO_SPLIT:
        return Validation(frozenset(prompts), is_shared=True)
    return Validation(frozenset(prompts[: min(len(prompts) // 2, MAX_TO_VALIDATE)]))


@dataclass(frozen=True)
class HeldOutLoss:
    """items: for objective.collate; not empty. batch_size: of items whose features are held at once."""

    objective: Objective
    loss: Loss
    items: Sequence[Any]
    batch_size: int

    def __post_init__(self) -> None:
        self.objective.prepare_held_out(self.items)

    @torch.no_grad()
    def per_item(self, process: int = 0, num_processes: int = 1) -> Tensor:
        """The loss of each item [N], on the CPU; of several processes each takes its share, and the others'
        items are 0."""
        found = torch.zeros(len(self.items))
        starts = range(0, len(self.items), self.batch_size)
        for start in starts[process::num_processes]:
            some = self.items[start : start + self.batch_size]
            batch = self.objective.collate(some)
            scores, _ = self.objective(**{k: x.to(self.objective.policy.device) for k, x in batch.items()})
            found[start : start + len(some)] = self.loss(**scores).per_example.cpu()
        return found


@contextmanager
def knowing_nothing(objective: Objective, items: Sequence[Any]) -> Iterator[None]:
    """Within, the part that is trained says the same of everything: an advantage and a reward 0, a value the
    mean return of the items, which are those that are trained on."""
    trained = {name: parameter.detach().clone() for name, parameter in objective.named_parameters()}
    objective.forget(items)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in objective.named_parameters():
                parameter.copy_(trained[name])


def loss_figures(part: str, held_out: HeldOutLoss, items: Sequence[Any]) -> Figures:
    """items: that were trained on. The gain is by how much the loss is lower than that of a part that knows
    nothing."""
    loss = held_out.per_item()
    with knowing_nothing(held_out.objective, items):
        nothing = held_out.per_item()
    gain = estimate_mean(nothing - loss, number_prompts(held_out.items))
    return {
        f"{part}_judged": len(loss),
        f"{part}_loss": loss.double().mean().item(),
        f"{part}_loss_of_nothing": nothing.double().mean().item(),
        **gain.named(f"{part}_gain"),
    }


def stopping_figures(part: str, seen: TrainingLog, num: int, validation: Validation) -> Figures:
    """Of a part whose epoch was chosen by the loss on `num` rows."""
    if seen.best_step is None:
        return {}
    epoch = [step for step, _ in seen.held_out].index(seen.best_step) + 1
    shared = {f"{part}_validation_is_shared": 1.0} if validation.is_shared else {}
    return {f"{part}_best_epoch": epoch, f"{part}_validation_rows": num, **shared}


def pair_figures(part: str, scores: Sides, lengths: Sides, pairs: Sequence[Any]) -> Figures:
    """scores, lengths: [N] of the better replies, and of the worse. above_length: by how much more often it
    is right than the better of two rules that read nothing, pick the longer reply or the shorter."""
    figures: Figures = {f"{part}_pairs": len(pairs)}
    if len(pairs) < MIN_JUDGED:
        return figures
    prompts, right, longer = number_prompts(pairs), wins(*scores), wins(*lengths)
    length = longer if longer.mean() >= 0.5 else 1 - longer
    accuracy, above = estimate_share(right, prompts), estimate_mean(right - length, prompts)
    return figures | accuracy.named(f"{part}_accuracy") | above.named(f"{part}_above_length")


def label_figures(part: str, scores: Tensor, items: Sequence[Any]) -> Figures:
    """scores: [N], of labelled replies."""
    figures: Figures = {f"{part}_labels": len(items)}
    is_good = torch.tensor([item.label for item in items], dtype=torch.bool)
    if min(is_good.sum(), (~is_good).sum()) < _MIN_OF_A_KIND:
        return figures
    prompts = number_prompts(items)
    found = estimate_ordering(scores[is_good], scores[~is_good], prompts[is_good], prompts[~is_good])
    return figures | found.named(f"label_{part}_accuracy")


def correlation_figures(
    part: str, scores: Sequence[Tensor], returns: Sequence[Tensor], items: Sequence[RolloutItem]
) -> Figures:
    """scores, returns: of each reply, at its tokens or one number."""
    figures: Figures = {f"{part}_correlated": len(items)}
    if len(items) < MIN_JUDGED:
        return figures
    prompts = number_prompts(items).repeat_interleave(torch.tensor([len(x) for x in scores]))
    found = estimate_correlation(torch.cat(list(scores)), torch.cat(list(returns)), prompts)
    return figures | found.named(f"{part}_correlation")


def score_figures(steered: Sequence[RolloutItem], plain: Sequence[RolloutItem]) -> Figures:
    """Of replies with a head and without: the means, and what the head gains on the prompts of both."""
    figures: Figures = {}
    by_name = {"score": steered, "base_score": plain}
    for name, items in by_name.items():
        figures |= estimate_mean(_rewards(items), number_prompts(items)).named(name)
    means = [_by_prompt(items) for items in by_name.values()]
    both = [prompt for prompt in means[0] if prompt in means[1]]
    gains = torch.tensor([means[0][prompt] - means[1][prompt] for prompt in both])
    gain = estimate_mean(gains, torch.arange(len(both)))
    return figures | gain.named("score_gain") | {"score_prompts": len(both)}


def wins(better: Tensor, worse: Tensor) -> Tensor:
    """1 where the better one scores higher, ½ on a tie, else 0."""
    return (better > worse).double() + 0.5 * (better == worse)


def _rewards(items: Sequence[RolloutItem]) -> Tensor:
    return torch.tensor([sum(item.rewards()) for item in items])


def _by_prompt(items: Sequence[RolloutItem]) -> dict[tuple[int, ...], float]:
    grouped: dict[tuple[int, ...], list[float]] = {}
    for item in items:
        grouped.setdefault(item.reply.prompt_ids, []).append(sum(item.rewards()))
    return {prompt: sum(some) / len(some) for prompt, some in grouped.items()}
