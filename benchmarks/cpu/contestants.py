"""Contestants of the CPU benchmark: each completes the same prompts, and says the seconds that it took."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from benchmarks.cpu import vllm_worker
from benchmarks.worker import Worker
from trimtab.guidance.heads.forms import Head
from trimtab.guidance.heads.store import load_head
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.request import ChoiceDone, Guidance, Request, SamplingParams
from trimtab.server.rollouts.sample import sample

Prompts = Sequence[Sequence[int]]


class Contestant(Protocol):
    def run(self, prompts: Prompts, num_new_tokens: int) -> float:
        """Completes each prompt with so many new tokens; seconds taken."""


class Ours:
    def __init__(self, engine: Engine, guidance: Guidance) -> None:
        self._engine, self._guidance = engine, guidance
        self._ids = itertools.count()

    def run(self, prompts: Prompts, num_new_tokens: int) -> float:
        sampling = SamplingParams(max_tokens=num_new_tokens, ignore_eos=True)
        requests = [
            Request(f"{id(self)}-{next(self._ids)}", tuple(prompt), sampling, self._guidance)
            for prompt in prompts
        ]
        start = time.perf_counter()
        completions = sample(self._engine, requests)
        seconds = time.perf_counter() - start
        for completion in completions:
            assert len(completion.tokens) == num_new_tokens
            assert (completion.summary.kl > 0) == bool(self._guidance.strength), (
                "the rule ran where it was asked for"
            )
        return seconds


class Generate:
    """transformers' generate over all prompts as one batch, without guidance."""

    def __init__(self, model: Path, head: Path) -> None:
        self._generate = GuidedGenerate(model, head, strength=0.0)

    def run(self, prompts: Prompts, num_new_tokens: int) -> float:
        start = time.perf_counter()
        self._generate.run(prompts, [num_new_tokens] * len(prompts))
        return time.perf_counter() - start


class GuidedGenerate:
    """transformers' generate with the same rule from a hook on lm_head: what a script would do.

    Samples at temperature 1. strength 0 leaves the hook out. num_guided counts the rows it has tilted.
    """

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


class Vllm:
    """vLLM in its own interpreter."""

    def __init__(self, python: Path, model: Path, dtype: str = "float32") -> None:
        self._worker = Worker(python, vllm_worker.__file__, model, dtype)
        self.version, self.close = self._worker.version, self._worker.close

    def run(self, prompts: Prompts, num_new_tokens: int) -> float:
        job = {"prompts": [list(prompt) for prompt in prompts], "num_new_tokens": num_new_tokens}
        return float(self._worker.ask(job)["seconds"])


@dataclass(frozen=True, slots=True)
class Arrival:
    """at: seconds after the start."""

    at: float
    prompt: tuple[int, ...]
    num_new_tokens: int


def draw_arrivals(rng: np.random.Generator, num_requests: int, rate: float, vocab_size: int) -> list[Arrival]:
    """Poisson arrivals at `rate` per second, prompts of 8…128 and replies of 16…128 tokens."""
    times = (
        np.cumsum(rng.exponential(1 / rate, num_requests)) if np.isfinite(rate) else np.zeros(num_requests)
    )
    return [
        Arrival(
            float(at),
            tuple(rng.integers(2, vocab_size, int(rng.integers(8, 129))).tolist()),
            int(rng.integers(16, 129)),
        )
        for at in times
    ]


def ours(engine: Engine, arrivals: Sequence[Arrival], guidance: Guidance) -> float:
    """Makespan: seconds from the first arrival to the last reply."""
    start = time.perf_counter()
    num_added = num_done = 0
    while num_done < len(arrivals):
        now = time.perf_counter() - start
        while num_added < len(arrivals) and arrivals[num_added].at <= now:
            arrival = arrivals[num_added]
            sampling = SamplingParams(max_tokens=arrival.num_new_tokens, ignore_eos=True)
            engine.add(Request(f"makespan-{num_added}", arrival.prompt, sampling, guidance))
            num_added += 1
        if engine.has_work:
            num_done += sum(isinstance(event, ChoiceDone) for event in engine.step())
        else:
            time.sleep(max(arrivals[num_added].at - now, 0))
    while engine.has_work:
        engine.step()
    return time.perf_counter() - start


def hugging_face(generate: GuidedGenerate, arrivals: Sequence[Arrival], max_batch: int) -> float:
    """Makespan one by one (max_batch 1), or in padded batches of what waits."""
    num_guided = generate.num_guided
    start = time.perf_counter()
    num_done = 0
    while num_done < len(arrivals):
        now = time.perf_counter() - start
        waiting = [arrival for arrival in arrivals[num_done:] if arrival.at <= now][:max_batch]
        if not waiting:
            time.sleep(arrivals[num_done].at - now)
            continue
        generate.run([a.prompt for a in waiting], [a.num_new_tokens for a in waiting])
        num_done += len(waiting)
    seconds = time.perf_counter() - start
    assert generate.num_guided - num_guided >= sum(a.num_new_tokens for a in arrivals), "the rule ran"
    return seconds
