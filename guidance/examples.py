"""The examples of a training run: rows encoded, over-long ones left out, prompts split into two sets."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

from trimtab.guidance.data import Preference, Rollout, load_preferences, load_rollouts
from trimtab.guidance.encoding import EncodedReply, ReplyEncoder
from trimtab.guidance.errors import DataError
from trimtab.guidance.policy import Policy
from trimtab.guidance.train_config import TrainConfig

logger = logging.getLogger(__name__)
EncodedPair = tuple[EncodedReply, EncodedReply]  # chosen, rejected


@dataclass(frozen=True, slots=True)
class Examples:
    """No prompt is both trained on and held out."""

    train_pairs: tuple[EncodedPair, ...]
    held_out_pairs: tuple[EncodedPair, ...]
    train_rollouts: tuple[EncodedReply, ...]
    held_out_rollouts: tuple[EncodedReply, ...]


def load_examples(config: TrainConfig, policy: Policy) -> Examples:
    """Reads, encodes and splits the rows that the configuration names.

    Raises:
        DataError: rows that cannot be read, or too few prompts to hold some out.
        PolicyError: the tokenizer cannot render the rows.
    """
    encoder = ReplyEncoder(policy.tokenizer)
    assert config.preferences is not None
    preferences = load_preferences(config.preferences, config.on_bad_rows).rows
    pairs = _fitting_pairs([_encode_pair(encoder, row) for row in preferences], config)
    if config.rollouts is None:
        rollouts = list(dict.fromkeys(reply for pair in pairs for reply in pair))
    else:
        rows = load_rollouts(config.rollouts, config.on_bad_rows).rows
        rollouts = _fitting_rollouts([_encode_rollout(encoder, row) for row in rows], config)
    prompts = [pair[0].prompt_ids for pair in pairs] + [reply.prompt_ids for reply in rollouts]
    held_out = held_out_prompts(prompts, config.held_out, config.seed)
    examples = Examples(
        tuple(pair for pair in pairs if pair[0].prompt_ids not in held_out),
        tuple(pair for pair in pairs if pair[0].prompt_ids in held_out),
        tuple(reply for reply in rollouts if reply.prompt_ids not in held_out),
        tuple(reply for reply in rollouts if reply.prompt_ids in held_out),
    )
    for part in ("train_pairs", "held_out_pairs", "train_rollouts", "held_out_rollouts"):
        if not getattr(examples, part):
            raise DataError(
                f"{config.preferences}: no {part.replace('_', ' ')} with held_out={config.held_out}: "
                "give rows with more different prompts, or another share"
            )
    return examples


def held_out_prompts(
    prompts: Sequence[tuple[int, ...]], share: float, seed: int
) -> frozenset[tuple[int, ...]]:
    """The ⌈share · n⌉ prompts of n different ones that come first by a hash of prompt and seed."""

    def rank(prompt: tuple[int, ...]) -> bytes:
        return hashlib.sha256(repr((seed, prompt)).encode()).digest()

    different = sorted(set(prompts), key=rank)
    return frozenset(different[: math.ceil(share * len(different))])


def _encode_pair(encoder: ReplyEncoder, row: Preference) -> EncodedPair:
    return encoder.encode(row.prompt, row.chosen), encoder.encode(row.prompt, row.rejected)


def _encode_rollout(encoder: ReplyEncoder, row: Rollout) -> EncodedReply:
    return encoder.encode(row.prompt, row.completion)


def _fitting_pairs(pairs: list[EncodedPair], config: TrainConfig) -> list[EncodedPair]:
    fitting = [pair for pair in pairs if max(r.num_tokens for r in pair) <= config.max_tokens]
    _report_left_out(len(pairs) - len(fitting), len(fitting), config)
    return fitting


def _fitting_rollouts(rollouts: list[EncodedReply], config: TrainConfig) -> list[EncodedReply]:
    fitting = [reply for reply in rollouts if reply.num_tokens <= config.max_tokens]
    _report_left_out(len(rollouts) - len(fitting), len(fitting), config)
    return fitting


def _report_left_out(num_left_out: int, num_fitting: int, config: TrainConfig) -> None:
    if not num_fitting:
        raise DataError(f"every row is longer than max_tokens={config.max_tokens}: raise it")
    if num_left_out:
        logger.warning("left out %d rows longer than max_tokens=%d", num_left_out, config.max_tokens)
