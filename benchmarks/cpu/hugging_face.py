"""transformers' generate with the same guidance rule from a hook on lm_head: what a script would do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from trimtab.guidance.heads.forms import Head
from trimtab.guidance.heads.store import load_head


class GuidedGenerate:
    """Samples at temperature 1. strength 0 leaves the hook out. num_guided counts the rows it has tilted."""

    def __init__(self, model: Path, head: Path, strength: float) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(model).eval()
        self._head: Head = load_head(head)[0].eval()
        self._strength = strength
        self.num_guided = 0
        if strength:
            self._model.get_output_embeddings().register_forward_hook(self._tilt)

    def _tilt(self, lm_head: nn.Linear, args: tuple[Tensor], logits: Tensor) -> Tensor:
        assert self._head.advantage is not None
        advantage = self._head.advantage(args[0], lm_head.weight)
        mean = (logits.softmax(-1) * advantage).sum(-1, keepdim=True)
        self.num_guided += logits.shape[0]
        return logits + self._strength * (advantage - mean)

    @torch.inference_mode()
    def run(self, prompts: Sequence[Sequence[int]], num_new_tokens: Sequence[int]) -> None:
        """Complete left-padded prompts; each takes as long as the longest reply asked for."""
        longest = max(len(prompt) for prompt in prompts)
        ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        num_new = max(num_new_tokens)
        out = self._model.generate(
            ids,
            attention_mask=mask,
            do_sample=True,
            max_new_tokens=num_new,
            min_new_tokens=num_new,
            eos_token_id=None,
            pad_token_id=0,
            top_k=0,
        )
        assert out.shape[1] == longest + num_new
