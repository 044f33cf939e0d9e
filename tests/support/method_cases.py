"""Items of every kind of rows for the policy of tests/guidance/conftest.py, and objectives on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from trimtab.guidance.data.items import LabelItem, PairItem, RankingItem, RolloutItem, mismatch
from trimtab.guidance.features.source import FeatureCache
from trimtab.guidance.heads.forms import Head
from trimtab.guidance.heads.manifest import Parts
from trimtab.guidance.policy import Policy
from trimtab.guidance.text.encoding import EncodedReply
from trimtab.guidance.training.config import AdvantageConfig, PartName, RewardConfig, TrainConfig, ValueConfig
from trimtab.guidance.training.methods import METHODS
from trimtab.guidance.training.objectives.base import Objective

EOS = 3
WORDS = range(6, 24)
OFFLINE = [
    (part, name)
    for part, methods in METHODS.items()
    for name, method in methods.items()
    if method.rows != "prompts"
]


def replies(count: int, seed: int = 0, *, cut: bool = False) -> list[EncodedReply]:
    """Random replies of 1 to 6 tokens to three prompts, each with its end token."""
    generator = torch.Generator().manual_seed(seed)

    def words(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(WORDS.start, WORDS.stop, (length,), generator=generator).tolist())

    prompts = [(6, 7), (8,), (9, 10, 11)]
    lengths = torch.randint(1, 6, (count,), generator=generator).tolist()
    return [
        EncodedReply(prompts[i % 3], (*words(length), EOS), is_cut=cut and i % 2 == 0)
        for i, length in enumerate(lengths)
    ]


def make_items(rows: str, count: int = 8, *, cut: bool = False) -> list[Any]:
    """Items for a method that reads such rows."""
    first, second = replies(count, 1, cut=cut), replies(count, 2, cut=cut)
    if rows == "pairs":
        return [PairItem(a, b, 0.1 * i) for i, (a, b) in enumerate(zip(first, second, strict=True))]
    if rows == "rankings":
        third = replies(count, 3, cut=cut)
        return [RankingItem(each, (2.5, 1, 2.5)) for each in zip(first, second, third, strict=True)]
    if rows == "unpaired":
        return mismatch([LabelItem(reply, i % 3 > 0) for i, reply in enumerate(first)])
    assert rows == "rollouts"
    return [RolloutItem(reply, reward=float(i % 4) - 0.5) for i, reply in enumerate(first)]


def make_config(part: PartName, loss: str, form: str = "") -> TrainConfig:
    """A configuration that trains one part by one loss; small, and of the form that is named."""
    options = {"loss": loss} | ({"form": form} if form else {})
    flipped = 0.1 if loss in {"conservative_dpo", "robust_dpo"} else 0.0
    parts = {
        "advantage": AdvantageConfig(rank=4, top_k=5, num_prefixes=3, discount=0.9, flipped=flipped),
        "value": ValueConfig(width=5, bins=7, low=-2, high=4, units=3),
        "reward": RewardConfig(width=5, margin=0.2),
    }
    kinds = {"advantage": AdvantageConfig, "value": ValueConfig, "reward": RewardConfig}
    parts[part] = kinds[part](**{**vars(parts[part]), **options})
    return TrainConfig(
        name="tiny",
        model="tiny",
        head_folder=Path("head"),
        run_folder=Path("run"),
        parts=(part,),
        show_progress=False,
        **parts,
    )


def make_head(config: TrainConfig, policy: Policy, *, untrained: PartName | None = None) -> Head:
    """A head with all three parts, of random weights but for the part that is untrained."""
    parts = Parts(config.advantage.part(), config.value.part(), config.reward.part())
    torch.manual_seed(5)
    head = Head(parts, policy.identity.hidden_size, policy.identity.vocab_size)
    for name, parameter in head.named_parameters():
        if untrained is None or not name.startswith(untrained):
            torch.nn.init.normal_(parameter, std=0.3)
    return head


def make_objective(
    part: PartName, config: TrainConfig, head: Head, policy: Policy, items: list[Any]
) -> Objective:
    """The objective of the configured method, prepared for the items."""
    method = METHODS[part][getattr(config, part).loss]
    objective = method.objective(head, config, FeatureCache(policy, show_progress=False))
    objective.prepare(items)
    return objective


def losses_of(part: PartName, config: TrainConfig, objective: Objective, items: list[Any]) -> torch.Tensor:
    """One loss for each item."""
    part_config = getattr(config, part)
    scores, _ = objective(**objective.collate(items))
    return METHODS[part][part_config.loss].loss.bind(part_config)(**scores).per_example
