"""Rows as TRL's trainers take them once tokenized: the same tokens that a head would be trained on."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import datasets

from trimtab.guidance.data.load import load_preferences, load_rollouts
from trimtab.guidance.errors import DataError
from trimtab.guidance.policy import Policy
from trimtab.guidance.text.encoding import EncodedReply, ReplyEncoder
from trimtab.guidance.text.prompt_form import form_of
from trimtab.guidance.training.lora.config import LoraConfig

logger = logging.getLogger(__name__)
_IGNORED = -100  # torch's label of a position without loss


def preference_rows(config: LoraConfig, policy: Policy) -> datasets.Dataset:
    """Columns prompt_ids, chosen_ids, rejected_ids. Raises DataError or PolicyError with one line."""
    encoder = _encoder(config, policy)
    pairs = [
        (
            encoder.encode(row.prompt, row.chosen, row.chosen_sampled),
            encoder.encode(row.prompt, row.rejected, row.rejected_sampled),
        )
        for row in load_preferences(config.data, config, as_text=encoder.form == "text").rows
    ]
    encoder.notes.tell(logger, config.data)
    return pairs_dataset(_fitting(pairs, config))


def completion_rows(config: LoraConfig, policy: Policy) -> datasets.Dataset:
    """Columns input_ids and labels, of which the prompt's are ignored. Raises as preference_rows."""
    encoder = _encoder(config, policy)
    replies = [
        (encoder.encode(row.prompt, row.completion, row.sampled),)
        for row in load_rollouts(config.data, config, as_text=encoder.form == "text").rows
    ]
    encoder.notes.tell(logger, config.data)
    kept = [reply for (reply,) in _fitting(replies, config)]
    return datasets.Dataset.from_dict(
        {
            "input_ids": [[*reply.prompt_ids, *drawn(reply)] for reply in kept],
            "labels": [[*[_IGNORED] * len(reply.prompt_ids), *drawn(reply)] for reply in kept],
        }
    )


def _encoder(config: LoraConfig, policy: Policy) -> ReplyEncoder:
    form = form_of(policy.tokenizer, config.rows, [config.data])
    return ReplyEncoder(policy.tokenizer, form, end_ids=policy.end_ids, extra_keys=config.extra_columns)


def pairs_dataset(pairs: Sequence[tuple[EncodedReply, ...]]) -> datasets.Dataset:
    """Pairs (chosen, rejected) as DPOTrainer tokenizes them itself."""
    return datasets.Dataset.from_dict(
        {
            "prompt_ids": [list(chosen.prompt_ids) for chosen, _ in pairs],
            "chosen_ids": [drawn(chosen) for chosen, _ in pairs],
            "rejected_ids": [drawn(rejected) for _, rejected in pairs],
        }
    )


def drawn(reply: EncodedReply) -> list[int]:
    """The reply's tokens; one that was cut by length has no end token."""
    return list(reply.reply_ids[: reply.num_drawn])


def _fitting(rows: Sequence[tuple[EncodedReply, ...]], config: LoraConfig) -> list[tuple[EncodedReply, ...]]:
    fitting = [row for row in rows if max(reply.num_tokens for reply in row) <= config.max_tokens]
    if not fitting:
        raise DataError(f"{config.data}: every row is longer than max_tokens={config.max_tokens}: raise it")
    if len(fitting) < len(rows):
        left_out = len(rows) - len(fitting)
        logger.warning(
            "%s: left out %d rows longer than max_tokens=%d", config.data, left_out, config.max_tokens
        )
    return fitting
