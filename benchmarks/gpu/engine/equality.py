"""Equality of the engine's replies: with `generate`'s, and by every route through the engine."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.case import Case
from benchmarks.gpu.engine.speed import require_guidance
from benchmarks.gpu.engine.subject import FORMS, EngineSizes, Subject, random_prompts
from benchmarks.gpu.findings import Findings
from benchmarks.gpu.inputs import dtype_name
from benchmarks.gpu.machine import Machine
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.request import Completion, Guidance, Request, SamplingParams
from trimtab.server.engine.self_check import TOLERANCE, self_check
from trimtab.server.rollouts.sample import sample

OTHER_REPLIES = 0.05  # share that may differ between two routes in fp32: each began with a near tie


def check_generate(machine: Machine, sizes: EngineSizes, findings: Findings) -> None:
    """Greedy replies to prompts of mixed length, all in one batch, are those of `generate`, one by one."""
    for dtype in sizes.dtypes:
        with findings.attempt(dtype_name(dtype)):
            _check_generate(machine, sizes, findings, dtype)


def _check_generate(machine: Machine, sizes: EngineSizes, findings: Findings, dtype: torch.dtype) -> None:
    subject = Subject(sizes.small, machine.device, dtype, sizes.rank)
    own = copy.deepcopy(subject.model)
    findings.require("tails that are not seen to be linear", 0 if subject.has_linear_tail else 1, 0)
    engine = subject.engine(max_num_seqs=len(sizes.check_prompts))
    self_check(subject.policy(), engine.config)
    engine = subject.engine(max_num_seqs=len(sizes.check_prompts))
    prompts = random_prompts(sizes.small, sizes.check_prompts)
    greedy = SamplingParams(max_tokens=sizes.check_tokens, temperature=0, ignore_eos=True)
    completions = sample(engine, [Request(str(i), p, greedy) for i, p in enumerate(prompts)])
    name = dtype_name(dtype)
    for prompt, completion in zip(prompts, completions, strict=True):
        gap = _gap_to_generate(own, prompt, completion.token_ids)
        findings.require(f"{name}: logit gap where the reply leaves generate's", gap, TOLERANCE[dtype])


def _gap_to_generate(model: Any, prompt: Sequence[int], reply: Sequence[int]) -> float:
    """By how much of the logits' size, at the first token that differs, the model prefers its own."""
    ids = torch.tensor([prompt], device=model.device)
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=len(reply),
        min_new_tokens=len(reply),
        eos_token_id=None,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    theirs = out.sequences[0, len(prompt) :].tolist()
    for place, (mine, other) in enumerate(zip(reply, theirs, strict=True)):
        if mine != other:
            logits: Tensor = out.logits[place][0].float()
            return float((logits[other] - logits[mine]) / logits.abs().max().clamp(min=1.0))
    return 0.0


def check_routes(machine: Machine, sizes: EngineSizes, findings: Findings) -> None:
    """Padding, CUDA graphs, a step read late, small chunks: seeded fp32 replies stay the same."""
    subject = Subject(sizes.small, machine.device, torch.float32, sizes.rank)
    routes: dict[str, dict[str, Any]] = {
        "padding": {"padding": "buckets"},
        "a step read late": {"async_depth": 1},
        "small chunks": {"max_num_batched_tokens": max(16, len(sizes.check_prompts))},
    }
    if machine.is_cuda:
        routes["CUDA graphs"] = {"cuda_graphs": "on"}
        routes["CUDA graphs and a step read late"] = {"cuda_graphs": "on", "async_depth": 1}
    plainest: dict[str, Any] = {"cuda_graphs": "off", "async_depth": 0}
    expected = _run_mixed(subject, sizes, **plainest)
    require_guidance(
        findings,
        [
            (bool(request.guidance.strength), completion.summary.kl)
            for request, completion in zip(mixed_requests(sizes), expected, strict=True)
        ],
    )
    for name, options in routes.items():
        with findings.attempt(name):
            found = _run_mixed(subject, sizes, **(plainest | options))
            share = _share_of_others(expected, found)
            findings.require(f"{name}: share of other replies", share, OTHER_REPLIES)


def check_fused_and_materialised(machine: Machine, sizes: EngineSizes, findings: Findings) -> None:
    """A batchmate that needs logits sends the batch another way; the others' replies stay the same."""
    subject = Subject(sizes.small, machine.device, torch.float32, sizes.rank)
    alone = _run_mixed(subject, sizes)
    picky = Request(
        "picky",
        random_prompts(sizes.small, [9], seed=5)[0],
        SamplingParams(
            max_tokens=sizes.check_tokens, top_p=0.9, top_k=20, min_p=0.01, logprobs=3, frequency_penalty=0.5,
            logit_bias=((7, 2.0),), seed=3, ignore_eos=True,
        ),
        Guidance(1.0, (("tied", 0.5), ("lowrank", 0.5)), trace=True),
    )  # fmt: skip
    together = _run_mixed(subject, sizes, others=[picky])
    share = _share_of_others(alone, together[: len(alone)])
    findings.require("share of other replies", share, OTHER_REPLIES)
    for token in together[-1].tokens:
        assert token.trace is not None
        findings.require("negative KL", -token.trace.kl, 0)
        findings.require("drawn tokens above log-probability 0", token.logprob, 1e-4)


def check_strict(machine: Machine, sizes: EngineSizes, findings: Findings) -> None:
    """Under strict, tokens and log-probabilities are bitwise the same alone and in company."""
    subject = Subject(sizes.small, machine.device, sizes.dtypes[0], sizes.rank)
    requests = mixed_requests(sizes)
    engine = subject.engine(max_num_seqs=len(requests), strict=True)
    together = sample(engine, requests)
    for request, company in zip(requests, together, strict=True):
        [alone] = sample(engine, [request])
        same = [(token.token_id, token.logprob) for token in alone.tokens] == [
            (token.token_id, token.logprob) for token in company.tokens
        ]
        findings.require("replies that differ in any bit", 0 if same else 1, 0)


def mixed_requests(sizes: EngineSizes) -> list[Request]:
    """Plain and guided rows of both forms, sampled and greedy, seeded."""
    requests = []
    for i, prompt in enumerate(random_prompts(sizes.small, sizes.check_prompts)):
        strength = (1.0, 0.0, -2.0, 0.5)[i % 4]
        sampling = SamplingParams(
            max_tokens=sizes.check_tokens, temperature=0.0 if i % 5 == 4 else 1.0, seed=i, ignore_eos=True
        )
        requests.append(Request(str(i), prompt, sampling, Guidance(strength, ((FORMS[i % 2], 1.0),))))
    return requests


def _run_mixed(
    subject: Subject, sizes: EngineSizes, others: Sequence[Request] = (), **options: Any
) -> list[Completion]:
    requests = [*mixed_requests(sizes), *others]
    engine: Engine = subject.engine(max_num_seqs=len(requests), **options)
    return sample(engine, requests)


def _share_of_others(expected: Sequence[Completion], found: Sequence[Completion]) -> float:
    pairs = list(zip(expected, found, strict=True))
    return sum(a.token_ids != b.token_ids for a, b in pairs) / len(pairs)


CASES = {
    "replies are generate's": Case("check", check_generate, 60, {"dtypes": (torch.bfloat16,)}, "engine"),
    "routes agree": Case("check", check_routes, 60, turn="engine"),
    "fused and materialised agree": Case("check", check_fused_and_materialised, 40, turn="afterwards"),
    "strict is bitwise": Case("check", check_strict, 40, turn="afterwards"),
    "replies are generate's, every type": Case("check", check_generate, 60, turn="afterwards"),
}
