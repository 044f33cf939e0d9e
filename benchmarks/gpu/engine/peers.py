"""Peer `generate_batch`, transformers' continuous batching, with the same rule from a hook on lm_head."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel

from benchmarks.common import Spread, spread_of
from benchmarks.gpu.case import Case
from benchmarks.gpu.engine.subject import EngineSizes, Subject, random_prompts
from benchmarks.gpu.findings import Findings, Measurement
from benchmarks.gpu.inputs import dtype_name
from benchmarks.gpu.machine import Machine
from trimtab.guidance.heads.forms import Head
from trimtab.server.engine.request import Guidance, Request, SamplingParams
from trimtab.server.rollouts.sample import sample

STRENGTH = 1.0
FORM = "lowrank"
TURNS = 3
# A cache sized from all memory takes long to make on a CPU.
TOY_BATCHING: dict[str, Any] = {"num_blocks": 16, "max_batch_tokens": 64, "page_size": 16}


class TiltHook:
    """The rule on what lm_head returns. What it notes of its work stays on the device, so that it counts in
    replayed CUDA graphs too and costs next to nothing."""

    def __init__(self, head: Head, strength: float, device: torch.device) -> None:
        self._head, self._strength = head, strength
        self._num_rows = torch.zeros((), dtype=torch.long, device=device)
        self._moved = torch.zeros((), device=device)

    def __call__(self, lm_head: nn.Linear, args: tuple[Tensor], logits: Tensor) -> Tensor:
        assert self._head.advantage is not None
        advantage = self._head.advantage(args[0], lm_head.weight)
        mean = (logits.softmax(-1) * advantage).sum(-1, keepdim=True)
        shift = self._strength * (advantage - mean)
        self._num_rows += shift[..., 0].numel()
        self._moved += shift[..., 0].abs().sum()
        return logits + shift

    def assert_ran(self, num_rows: int) -> None:
        """Make sure that it has tilted at least so many rows since the last time."""
        assert int(self._num_rows) >= num_rows, "their rule ran on every token"
        assert float(self._moved) > 0, "their rule moved the logits"
        self._num_rows.zero_()
        self._moved.zero_()


def bench_generate_batch(machine: Machine, sizes: EngineSizes, findings: Findings) -> None:
    """The same prompts to replies of the same length, from the first prompt to the last token."""
    subject = Subject(sizes.large, machine.device, sizes.dtype, sizes.rank)
    prompts = random_prompts(sizes.large, [sizes.prompt] * sizes.peer_rows)
    hook = TiltHook(subject.heads[FORM][0], STRENGTH, machine.device)
    ours = {
        "plain": _time_ours(subject, prompts, sizes, 0.0),
        "guided": _time_ours(subject, prompts, sizes, STRENGTH),
    }
    theirs = {
        "plain": _time_theirs(machine, subject, prompts, sizes.steps, None),
        "guided": _time_theirs(machine, subject, prompts, sizes.steps, hook),
    }
    for name, spread in ours.items():
        findings.measurements.append(
            Measurement(
                f"{sizes.steps} tokens of every row, {name}",
                f"{sizes.large.name} {dtype_name(sizes.dtype)} {FORM} prompt={sizes.prompt}",
                sizes.peer_rows,
                spread,
                None,
                {"generate_batch": theirs[name]},
            )
        )


def _time_ours(
    subject: Subject, prompts: Sequence[tuple[int, ...]], sizes: EngineSizes, strength: float
) -> Spread:
    engine = subject.engine(max_num_seqs=len(prompts), prefix_caching=False)
    guidance = Guidance(strength, ((FORM, 1.0),) if strength else ())
    sampling = SamplingParams(max_tokens=sizes.steps, ignore_eos=True)
    requests = [Request(str(i), prompt, sampling, guidance) for i, prompt in enumerate(prompts)]
    times = []
    for _ in range(TURNS + 1):
        start = time.perf_counter()
        completions = sample(engine, requests)
        times.append(1e6 * (time.perf_counter() - start))
        for completion in completions:
            assert (completion.summary.kl > 0) == bool(strength), "the rule ran where asked for"
    return spread_of(times[1:])


def _time_theirs(
    machine: Machine,
    subject: Subject,
    prompts: Sequence[tuple[int, ...]],
    num_tokens: int,
    hook: TiltHook | None,
) -> Spread:
    """What `generate_batch` does between starting its manager and stopping it, which take a second."""
    gc.collect()  # our engine's cache
    if machine.is_cuda:
        torch.cuda.empty_cache()
    model: PreTrainedModel = subject.model
    model.set_attn_implementation("sdpa")
    handle = None if hook is None else model.get_output_embeddings().register_forward_hook(hook)
    sampled = GenerationConfig(
        max_new_tokens=num_tokens, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, eos_token_id=-1,
        pad_token_id=0,
    )  # fmt: skip
    batching = ContinuousBatchingConfig(**({} if machine.is_cuda else TOY_BATCHING))
    times = []
    try:
        with model.continuous_batching_context_manager(
            generation_config=sampled, continuous_batching_config=batching
        ) as manager:
            for _ in range(TURNS + 1):
                start = time.perf_counter()
                _complete(manager, prompts, num_tokens)
                times.append(1e6 * (time.perf_counter() - start))
                if hook is not None:
                    hook.assert_ran(len(prompts) * num_tokens)
    finally:
        if handle is not None:
            handle.remove()
    return spread_of(times[1:])


def _complete(manager: Any, prompts: Sequence[tuple[int, ...]], num_tokens: int) -> None:
    manager.add_requests(inputs=[list(prompt) for prompt in prompts], max_new_tokens=num_tokens)
    num_done = 0
    while num_done < len(prompts):
        reply = manager.get_result(timeout=1)
        if reply is None:
            assert manager.is_running(), "the manager's thread has ended"
        elif reply.is_finished():
            assert len(reply.generated_tokens) == num_tokens, reply.error
            num_done += 1


CASES = {"beside generate_batch": Case("benchmark", bench_generate_batch, 60, turn="late")}
