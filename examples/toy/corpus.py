"""Corpus of the toy policy: conversations as batches of token ids, with a loss weight for each token."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from examples.toy.grammar.conversation import Conversation
from examples.toy.tokenizer import ASSISTANT, END

REQUEST_WEIGHT = 0.2


@dataclass(frozen=True)
class Example:
    """token_ids, and the weight of predicting each: 1 in replies with their end, REQUEST_WEIGHT elsewhere."""

    token_ids: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Batch:
    """token_ids [B, T] padded on the right, weights [B, T], zero on padding."""

    token_ids: Tensor
    weights: Tensor


def encode(
    conversations: Iterable[Conversation], tokenizer: PreTrainedTokenizerFast, max_length: int
) -> list[Example]:
    """Each conversation in the chat format, cut at `max_length` tokens."""
    texts = [tokenizer.apply_chat_template(c.messages(), tokenize=False) for c in conversations]
    assistant, end = tokenizer.convert_tokens_to_ids([ASSISTANT, END])
    examples = []
    encoded = tokenizer(texts, add_special_tokens=False, truncation=True, max_length=max_length)
    for ids in encoded["input_ids"]:
        weights, replying = [], False
        for token in ids:
            weights.append(1.0 if replying else REQUEST_WEIGHT)
            replying = token == assistant or (replying and token != end)
        examples.append(Example(tuple(ids), tuple(weights)))
    return examples


def batches(examples: Sequence[Example], tokens_per_batch: int, pad_id: int, seed: int) -> list[Batch]:
    """Shuffled batches of at most `tokens_per_batch` tokens, padding included, of examples about equally
    long, so that little of it is padding."""
    rng = random.Random(seed)
    shuffled = rng.sample(examples, len(examples))
    chunk_size = 4096
    groups: list[list[Example]] = []
    for start in range(0, len(shuffled), chunk_size):
        group: list[Example] = []
        for example in sorted(shuffled[start : start + chunk_size], key=lambda e: len(e.token_ids)):
            if group and (len(group) + 1) * len(example.token_ids) > tokens_per_batch:
                groups.append(group)
                group = []
            group.append(example)
        groups.append(group)
    rng.shuffle(groups)
    return [_padded(group, pad_id) for group in groups]


def _padded(group: Sequence[Example], pad_id: int) -> Batch:
    ids = itertools.zip_longest(*(e.token_ids for e in group), fillvalue=pad_id)
    weights = itertools.zip_longest(*(e.weights for e in group), fillvalue=0.0)
    return Batch(torch.tensor(list(ids)).T.contiguous(), torch.tensor(list(weights)).T.contiguous())
