"""Replies sampled by our own engine, as rollout rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm.auto import tqdm

from trimtab.guidance.data.rollouts import RolloutRow
from trimtab.guidance.text.message import Prompt
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.request import Guidance, GuidanceSummary, Request, SamplingParams
from trimtab.server.rollouts.offline import CompletedChoice, generate

Weights = tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """number: the prompt's own, which seeds its replies. end_id: what is read behind a reply that is cut;
    None for the policy's own. columns: carried along to the rows."""

    number: int
    prompt: Prompt
    token_ids: tuple[int, ...]
    end_id: int | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SamplePlan:
    """How replies are drawn. heads: name and weight of those that steer at `strength`.

    measure: a head whose reward part becomes the rows' reward, in its raw units.
    seed: of all; each prompt has noise of its own, whoever shares its batch.
    """

    num_replies: int = 1
    max_tokens: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    heads: Weights = ()
    strength: float = 0.0
    measure: str = ""

    def request(self, prompt: EncodedPrompt) -> Request:
        """Raises InvalidRequestError for numbers out of range."""
        sampling = SamplingParams(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            n=self.num_replies,
            seed=(self.seed << 32) + prompt.number,
        )
        measured = self.measure and self.measure not in dict(self.heads)
        heads = (*self.heads, (self.measure, 0.0)) if measured else self.heads
        guidance = Guidance(self.strength, heads)
        return Request(str(prompt.number), prompt.token_ids, sampling, guidance, prompt.end_id)


def sample(
    engine: Engine, prompts: Sequence[EncodedPrompt], plan: SamplePlan, bar: tqdm | None = None
) -> list[RolloutRow]:
    """num_replies rows for each prompt, in order. bar: told of every reply that ends.

    Raises InvalidRequestError before any work, GenerationError when a request ends with an error.
    """
    of_number = {prompt.number: prompt for prompt in prompts}
    completions = generate(engine, [plan.request(prompt) for prompt in prompts], bar=bar)
    return [
        _row(engine, plan, completion.request, of_number[int(completion.request.request_id)], index, choice)
        for completion in completions
        for index, choice in enumerate(completion.choices)
    ]


def _row(
    engine: Engine,
    plan: SamplePlan,
    request: Request,
    prompt: EncodedPrompt,
    index: int,
    choice: CompletedChoice,
) -> RolloutRow:
    assert choice.summary is not None and request.sampling.seed is not None
    return RolloutRow(
        prompt=prompt.prompt,
        completion=choice.text,
        token_ids=tuple(choice.token_ids),
        is_cut=choice.finish_reason == "length",
        prompt_id=int(request.request_id),
        sample=index,
        seed=request.sampling.seed,
        kl=choice.summary.kl,
        strength=plan.strength,
        temperature=plan.temperature,
        top_p=plan.top_p,
        reward=_raw_reward(engine, plan.measure, choice.summary) if plan.measure else None,
        columns=prompt.columns,
    )


def _raw_reward(engine: Engine, head: str, summary: GuidanceSummary) -> float | None:
    """The summary speaks standard units. None where the part gave no finite number."""
    manifest = engine.bank.manifests[engine.bank.names.index(head)]
    reward = dict(summary.reward)[head] * manifest.reward_std + manifest.reward_mean
    return reward if math.isfinite(reward) else None
