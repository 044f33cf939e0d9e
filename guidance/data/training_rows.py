"""Training rows made from scored replies: preferences, rankings, and good or bad ones."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa

from trimtab.guidance.data.rollouts import RolloutRow, stored_prompt
from trimtab.guidance.text.message import Prompt

PairRule = Literal["none", "best-worst", "all"]
Row = dict[str, Any]
_IDS = pa.list_(pa.int32())

PREFERENCE_COLUMNS: Mapping[str, pa.DataType] = {
    "chosen": pa.string(),
    "rejected": pa.string(),
    "margin": pa.float64(),
    "chosen_token_ids": _IDS,
    "rejected_token_ids": _IDS,
    "chosen_is_cut": pa.bool_(),
    "rejected_is_cut": pa.bool_(),
}
RANKING_COLUMNS: Mapping[str, pa.DataType] = {
    "responses": pa.list_(pa.string()),
    "ranks": pa.list_(pa.float64()),
    "token_ids": pa.list_(_IDS),
    "is_cut": pa.list_(pa.bool_()),
}
UNPAIRED_COLUMNS: Mapping[str, pa.DataType] = {
    "completion": pa.string(),
    "label": pa.bool_(),
    "token_ids": _IDS,
    "is_cut": pa.bool_(),
}


def preferences(rows: Iterable[RolloutRow], rule: PairRule, min_margin: float = 0.0) -> list[Row]:
    """Of each prompt's replies the best against the worst, or every pair whose rewards differ; margin is the
    difference, and at least min_margin. Equal texts make no pair."""
    made = []
    for prompt, replies in by_prompt(rows):
        for better, worse in _PAIRS[rule](replies):
            margin = _reward_of(better) - _reward_of(worse)
            if margin > 0 and margin >= min_margin and better.completion != worse.completion:
                made.append({"prompt": prompt, **_preference(better, worse), "margin": margin})
    return made


def rankings(rows: Iterable[RolloutRow]) -> list[Row]:
    """One row for each prompt whose replies differ in reward; rank 1 is the best, equal rewards tie."""
    made = []
    for prompt, replies in by_prompt(rows):
        ranks = ranks_of([_reward_of(reply) for reply in replies])
        if len(set(ranks)) > 1:
            made.append(
                {
                    "prompt": prompt,
                    "responses": [reply.completion for reply in replies],
                    "ranks": ranks,
                    "token_ids": [list(reply.token_ids) for reply in replies],
                    "is_cut": [reply.is_cut for reply in replies],
                }
            )
    return made


def ranks_of(scores: Sequence[float]) -> list[float]:
    """1 for the highest score; each further rank is 1 + the number of scores above it."""
    return [1.0 + sum(other > score for other in scores) for score in scores]


def unpaired(rows: Iterable[RolloutRow], threshold: float) -> list[Row]:
    """Every scored reply; its label is whether the reward reaches the threshold."""
    return [
        {
            "prompt": stored_prompt(row.prompt),
            "completion": row.completion,
            "label": row.reward >= threshold,
            "token_ids": list(row.token_ids),
            "is_cut": row.is_cut,
        }
        for row in rows
        if row.reward is not None
    ]


def by_prompt(rows: Iterable[RolloutRow]) -> Iterator[tuple[str | list[dict[str, Any]], list[RolloutRow]]]:
    """Scored replies of each prompt, in the order of the rows."""
    groups: defaultdict[tuple[int, Prompt], list[RolloutRow]] = defaultdict(list)
    for row in rows:
        if row.reward is not None:
            groups[row.prompt_id, row.prompt].append(row)
    for (_, prompt), replies in groups.items():
        yield stored_prompt(prompt), replies


def _reward_of(row: RolloutRow) -> float:
    assert row.reward is not None
    return row.reward


def _best_worst(replies: Sequence[RolloutRow]) -> list[tuple[RolloutRow, RolloutRow]]:
    return [(max(replies, key=_reward_of), min(replies, key=_reward_of))]


def _all_pairs(replies: Sequence[RolloutRow]) -> list[tuple[RolloutRow, RolloutRow]]:
    ordered = sorted(replies, key=_reward_of, reverse=True)
    return list(itertools.combinations(ordered, 2))


def _no_pairs(replies: Sequence[RolloutRow]) -> list[tuple[RolloutRow, RolloutRow]]:
    return []


_PAIRS: Mapping[PairRule, Callable[[Sequence[RolloutRow]], list[tuple[RolloutRow, RolloutRow]]]] = {
    "none": _no_pairs,
    "best-worst": _best_worst,
    "all": _all_pairs,
}


def _preference(better: RolloutRow, worse: RolloutRow) -> Row:
    return {
        "chosen": better.completion,
        "rejected": worse.completion,
        "chosen_token_ids": list(better.token_ids),
        "rejected_token_ids": list(worse.token_ids),
        "chosen_is_cut": better.is_cut,
        "rejected_is_cut": worse.is_cut,
    }
