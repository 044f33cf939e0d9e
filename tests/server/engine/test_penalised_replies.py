"""Penalised greedy replies are those of the definition, however their steps are run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch

from trimtab.server.engine.engine import Engine
from trimtab.server.engine.policy import forward_with_hidden
from trimtab.server.engine.request import Request, SamplingParams
from trimtab.server.rollouts.sample import sample

Make = Callable[..., Engine]
PROMPT = tuple(range(40, 60))
NUM_TOKENS = 30
BIAS = tuple((token, 4.0) for token in range(70, 90))
ASKED = (
    {"repetition_penalty": 1.4},
    {"presence_penalty": 1.5, "logit_bias": BIAS},
    {"frequency_penalty": 0.8, "presence_penalty": -0.3, "repetition_penalty": 0.9, "logit_bias": BIAS},
    {"logit_bias": BIAS},
    {},
)
WAYS: dict[str, dict[str, object]] = {
    "one launched step": {"async_depth": 0},
    "two launched steps": {"async_depth": 1},
    "preempted": {"async_depth": 1, "num_blocks": 19, "max_num_batched_tokens": 16, "prefix_caching": False},
    "strict": {"strict": True},
}


def expected(engine: Engine, prompt: tuple[int, ...], sampling: SamplingParams) -> list[int]:
    """Every token from the whole history, by the model's own forward."""
    policy = engine.policy
    policy.use_attention("eager")
    reply: list[int] = []
    while len(reply) < sampling.max_tokens:
        ids = torch.tensor([[*prompt, *reply]])
        positions = torch.arange(ids.shape[1])
        z = forward_with_hidden(policy.model, ids, positions[None], positions[-1:])[1][0].clone()
        for token, bias in sampling.logit_bias:
            z[token] += bias
        counts = Counter(reply)
        for token in {*prompt, *reply}:
            z[token] = (
                z[token] / sampling.repetition_penalty
                if z[token] > 0
                else z[token] * sampling.repetition_penalty
            )
            z[token] -= sampling.frequency_penalty * counts[token]
            z[token] -= sampling.presence_penalty * (counts[token] > 0)
        reply.append(int(z.argmax()))
    return reply


@pytest.mark.parametrize("way", WAYS)
def test_penalised_replies_are_those_of_the_definition(way: str, make_engine: Make):
    engine = make_engine(**WAYS[way])
    requests = []
    for i, options in enumerate(ASKED):
        sampling = SamplingParams(
            max_tokens=NUM_TOKENS + i,
            temperature=0,
            ignore_eos=True,
            n=1 + (i < 2),
            **options,  # type: ignore[arg-type]
        )
        requests.append(Request(str(i), PROMPT[i:], sampling))
    preempted = []
    schedule = engine.scheduler.schedule
    engine.scheduler.schedule = lambda: (step := schedule(), preempted.extend(step.preempted))[0]  # type: ignore[method-assign]
    served = sample(engine, requests)
    assert bool(preempted) == (way == "preempted")
    with torch.inference_mode():
        want = {r.request_id: expected(engine, r.prompt_token_ids, r.sampling) for r in requests}
    assert [c.token_ids for c in served] == [want[c.request.request_id] for c in served]
