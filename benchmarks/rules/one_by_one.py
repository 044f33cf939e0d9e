"""Lookahead over transformers as a script would do it: one reply at a time, with its keys and values kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from trimtab.guidance.heads.store import load_head


class OneByOne:
    """Draws from softmax(z + β(V − mean)) over the k likeliest tokens, temperature 1.

    Each is scored by a run of the model with it: k rows over the reply's keys and values, of which the drawn
    token's row goes on, so that nothing is computed twice. head: a folder, of a head with a value that does
    not remember.
    """

    def __init__(self, model: str | Path, head: Path, k: int, strength: float) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        loaded, manifest = load_head(head)
        assert loaded.value is not None
        self._value, self._mean, self._std = loaded.value.eval(), manifest.reward_mean, manifest.reward_std
        self._k, self._strength = k, strength

    @torch.inference_mode()
    def reply(self, prompt: Sequence[int], num_new_tokens: int) -> list[int]:
        cache, reply = DynamicCache(config=self._model.config), []
        h = self._run(torch.tensor([prompt]), cache)
        for _ in range(num_new_tokens):
            z, tokens = self._model.get_output_embeddings()(h)[0].topk(self._k)
            cache.batch_repeat_interleave(self._k)
            h = self._run(tokens[:, None], cache)
            values = (self._value(h) - self._mean) / self._std
            centred = values - (z.softmax(0) * values).sum()
            drawn = (z + self._strength * centred).softmax(0).multinomial(1)
            cache.batch_select_indices(drawn)
            h = h[drawn]
            reply.append(int(tokens[drawn]))
        return reply

    def _run(self, tokens: Tensor, cache: DynamicCache) -> Tensor:
        """h [N, d] behind tokens [N, T] that follow what the cache holds."""
        out = self._model.base_model(input_ids=tokens, past_key_values=cache, use_cache=True)
        h: Tensor = out.last_hidden_state[:, -1]
        return h
