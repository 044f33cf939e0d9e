"""The pairs that both contenders train on."""

from __future__ import annotations

import numpy as np

from benchmarks.training_speed.config import SpeedConfig
from trimtab.guidance.data.items import PairItem
from trimtab.guidance.text.encoding import EncodedReply

_FIRST_WORD = 2  # below are the special tokens


def draw_pairs(config: SpeedConfig) -> list[PairItem]:
    """Random tokens; the same for the same seed."""
    rng = np.random.default_rng(config.seed)
    lengths = (config.prompt_tokens, config.reply_tokens, config.reply_tokens)
    num_tokens, pairs = config.sizes["vocab_size"], []
    for _ in range(config.pairs):
        prompt, chosen, rejected = (
            tuple(rng.integers(_FIRST_WORD, num_tokens, length).tolist()) for length in lengths
        )
        pairs.append(PairItem(EncodedReply(prompt, chosen), EncodedReply(prompt, rejected)))
    return pairs
