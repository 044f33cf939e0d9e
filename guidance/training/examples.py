"""Examples: encodes the rows of a run, leaves over-long ones out, and splits their prompts into two sets."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from trimtab.guidance.data.items import (
    Item,
    LabelItem,
    PairItem,
    PromptItem,
    RankingItem,
    RolloutItem,
    load_items,
    prompt_of,
)
from trimtab.guidance.data.rows import ReadColumns
from trimtab.guidance.errors import DataError
from trimtab.guidance.losses.preference import UNPAIRED
from trimtab.guidance.policy import Policy
from trimtab.guidance.text.encoding import EncodedReply
from trimtab.guidance.text.prompt_form import Form, form_of
from trimtab.guidance.training.config import TrainConfig
from trimtab.guidance.training.held_out import reads_columns

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Split(Generic[T]):
    """What is trained on, and what judges."""

    train: tuple[T, ...] = ()
    held_out: tuple[T, ...] = ()


@dataclass(frozen=True, slots=True)
class Examples:
    """No prompt is both trained on and held out. A kind of rows that the run has no file of is empty."""

    pairs: Split[PairItem] = Split()
    rankings: Split[RankingItem] = Split()
    unpaired: Split[LabelItem] = Split()
    rollouts: Split[RolloutItem] = Split()
    prompts: Split[PromptItem] = Split()

    def replies(self) -> list[EncodedReply]:
        """All replies, each once."""
        kinds = (self.pairs, self.rankings, self.unpaired, self.rollouts)
        items: Iterator[Item] = (
            item for kind in kinds for side in (kind.train, kind.held_out) for item in side
        )
        return list(dict.fromkeys(reply for item in items for reply in item.replies))

    def held_out(self) -> list[Any]:
        """All items that judge."""
        kinds = (self.pairs, self.rankings, self.unpaired, self.rollouts, self.prompts)
        return [item for kind in kinds for item in kind.held_out]


MIN_ALIKE = 10
"""Replies that may be rewarded alike by chance."""
ITEMS_OF = {
    "preferences": "pairs",
    "rankings": "rankings",
    "unpaired": "unpaired",
    "rollouts": "rollouts",
    "prompts": "prompts",
}
"""A data file's field in TrainConfig -> its items' field in Examples, also a method's word for them."""


def load_examples(config: TrainConfig, policy: Policy, read: ReadColumns | None = None) -> Examples:
    """Reads, encodes and splits the rows that the configuration names. Without a file of rollouts, the
    replies of the other files serve. read: columns of the prompts that are to come along.

    Raises:
        DataError: rows that cannot be read, or too few prompts to hold some out.
        PolicyError: the tokenizer cannot render the rows.
    """
    files, config = files_of(config), replace(config, rows=rows_of(config, policy))
    items = {
        ITEMS_OF[name]: load_items(name, path, config, policy, mismatched=_needs_mismatch(config), read=read)
        for name, path in files.items()
    }
    _check_rewards(items.get("rollouts", ()), config)
    if "rollouts" not in items:
        items["rollouts"] = [RolloutItem(reply) for reply in _own_replies(items)]
    held_out = held_out_prompts(
        [prompt_of(i) for kind in items.values() for i in kind], config.held_out, config.seed
    )
    splits = {kind: _split(some, held_out) for kind, some in items.items()}
    for kind, split in splits.items():
        for side in ("train", "held_out"):
            if items[kind] and not getattr(split, side):
                raise DataError(
                    f"{', '.join(map(str, files.values()))}: no {side.replace('_', ' ')} {kind} with "
                    f"held_out={config.held_out}: give rows with more different prompts, or another share"
                )
    return Examples(**splits)


def _check_rewards(items: Sequence[RolloutItem], config: TrainConfig) -> None:
    """Raises DataError where all replies are rewarded alike."""
    if len(items) < MIN_ALIKE or not reads_columns(items, config) or not all(i.is_rewarded for i in items):
        return
    rewards = (tuple(item.rewards()) for item in items)
    if config.reward_from == "reply" or all(item.token_rewards is None for item in items):
        rewards = ((math.fsum(by_token),) for by_token in rewards)
    if len(set(rewards)) == 1:
        raise DataError(
            f"{config.rollouts}: all {len(items)} replies have the same reward, which teaches nothing: give "
            "rewards that tell replies apart"
        )


def files_of(config: TrainConfig) -> dict[str, Path]:
    """The data files by the configuration's names for them."""
    return {name: path for name in ITEMS_OF if (path := getattr(config, name)) is not None}


def rows_of(config: TrainConfig, policy: Policy) -> Form:
    """As what the run reads prompts that are strings. Raises PolicyError or DataError as form_of."""
    return form_of(policy.tokenizer, config.rows, files_of(config).values())


def _own_replies(items: Mapping[str, Sequence[Any]]) -> dict[EncodedReply, None]:
    """Replies to the prompts that they were given to, each once."""
    labelled = [item.reply for item in items.get("unpaired", ())]
    others = (item.replies for kind, some in items.items() if kind != "unpaired" for item in some)
    return dict.fromkeys([*(reply for replies in others for reply in replies), *labelled])


def held_out_prompts(
    prompts: Sequence[tuple[int, ...]], share: float, seed: int
) -> frozenset[tuple[int, ...]]:
    """The ⌈share · n⌉ prompts of n different ones that come first by a hash of prompt and seed."""

    def rank(prompt: tuple[int, ...]) -> bytes:
        return hashlib.sha256(repr((seed, prompt)).encode()).digest()

    different = sorted(set(prompts), key=rank)
    return frozenset(different[: math.ceil(share * len(different))])


def _needs_mismatch(config: TrainConfig) -> bool:
    return "advantage" in config.parts and config.advantage.loss in UNPAIRED


def _split(items: Sequence[Any], held_out: frozenset[tuple[int, ...]]) -> Split[Any]:
    return Split(
        tuple(item for item in items if prompt_of(item) not in held_out),
        tuple(item for item in items if prompt_of(item) in held_out),
    )
