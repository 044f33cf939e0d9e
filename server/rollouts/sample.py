"""Offline sampler: runs requests through an engine to the end, and gives their completions."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from tqdm.auto import tqdm

from trimtab.guidance.controllers.base import Controller
from trimtab.guidance.evaluation.replies import Heads, MeasuredReply
from trimtab.guidance.rules import Rule, Tilt
from trimtab.guidance.text.message import Prompt
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.request import (
    Aborted,
    ChoiceDone,
    Completion,
    Delta,
    Event,
    Failed,
    Guidance,
    GuidanceSummary,
    Request,
    SamplingParams,
)

if TYPE_CHECKING:
    from trimtab.guidance.data.rollouts import RolloutRow

Progress: TypeAlias = "tqdm | str | None"
"""A bar that goes on over several calls, the label of one of its own, or None for none."""


class GenerationError(RuntimeError):
    """A request ended with an error."""


def sample(engine: Engine, requests: Iterable[Request], progress: Progress = None) -> list[Completion]:
    """Every choice of every request, in order. Raises like `as_they_end`."""
    requests = list(requests)
    ended = {(c.request.request_id, c.index): c for c in as_they_end(engine, requests, progress)}
    return [ended[request.request_id, i] for request in requests for i in range(request.sampling.n)]


def as_they_end(
    engine: Engine, requests: Sequence[Request], progress: Progress = None
) -> Iterator[Completion]:
    """Completions, batched, each when it is whole: who keeps less of one than its tokens keeps no others.

    Raises InvalidRequestError before any work, GenerationError when a request ends with an error.
    """
    for request in requests:
        engine.check(request)
    growing = {(r.request_id, i): Completion(r, i) for r in requests for i in range(r.sampling.n)}
    with _bar(progress, len(growing)) as bar:
        for event in _events(engine, deque(requests)):
            if isinstance(event, Failed | Aborted):
                message = event.message if isinstance(event, Failed) else "aborted"
                raise GenerationError(f"request {event.request_id}: {message}")
            if isinstance(event, Delta | ChoiceDone):
                growing[event.request_id, event.index].take(event)
            if isinstance(event, ChoiceDone):
                bar.update()
                yield growing.pop((event.request_id, event.index))


def _bar(progress: Progress, total: int) -> AbstractContextManager[tqdm]:
    if progress is None or isinstance(progress, str):
        return tqdm(total=total, desc=progress, unit="reply", disable=progress is None)
    return nullcontext(progress)


def _events(engine: Engine, waiting: deque[Request]) -> Iterator[Event]:
    """Requests are handed over as room comes free: a queue of thousands would only be carried along."""
    live = 0
    while waiting or engine.has_work:
        while waiting and live < 2 * engine.config.max_num_seqs:
            request = waiting.popleft()
            engine.add(request)
            live += request.sampling.n
        for event in engine.step():
            live -= isinstance(event, ChoiceDone)
            yield event


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """number: the prompt's own, which seeds its replies. end_id: what is read behind a reply that is cut;
    None for the policy's own. columns: carried along to the rows."""

    number: int
    prompt: Prompt
    token_ids: tuple[int, ...]
    end_id: int | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)


def _tilt(prompt: EncodedPrompt) -> Rule:
    return Tilt()


@dataclass(frozen=True, slots=True)
class SamplePlan:
    """How replies to prompts are drawn. heads: those that steer at `strength`.

    seed: of all; each prompt has noise of its own, whoever shares its batch.
    controllers: what lessens the strength from token to token. rule: of each prompt.
    measured: heads whose reward part reads every reply, whether they steer or not.
    bias: (token id, number) that is added to the policy's logits. trace: measure every token.
    """

    num_replies: int = 1
    max_tokens: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    heads: Heads = ()
    strength: float = 0.0
    controllers: tuple[Controller, ...] = ()
    rule: Callable[[EncodedPrompt], Rule] = _tilt
    measured: tuple[str, ...] = ()
    bias: tuple[tuple[int, float], ...] = ()
    trace: bool = False

    def requests(self, prompt: EncodedPrompt) -> list[Request]:
        """One for all replies, or one for each where a rule returns no more. Raises InvalidRequestError for
        numbers out of range."""
        one, num = self.request(prompt), self.num_replies
        if not one.guidance.rule.is_pool or num == 1:
            return [one]
        alone = [replace(self, num_replies=1).request(prompt, sample) for sample in range(num)]
        return [replace(each, request_id=f"{each.request_id}/{i}") for i, each in enumerate(alone)]

    def request(self, prompt: EncodedPrompt, sample: int = 0) -> Request:
        """sample: of the prompt's requests, which have seeds of their own. Raises InvalidRequestError for
        numbers out of range."""
        sampling = SamplingParams(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            n=self.num_replies,
            seed=(self.seed << 32) + (sample << 24) + prompt.number,
            logit_bias=self.bias,
        )
        steering = dict(self.heads)
        watched = tuple((name, 0.0) for name in self.measured if name not in steering)
        guidance = Guidance(
            self.strength, (*self.heads, *watched), self.trace, self.controllers, self.rule(prompt)
        )
        return Request(str(prompt.number), prompt.token_ids, sampling, guidance, prompt.end_id)


def sample_rollouts(
    engine: Engine, prompts: Sequence[EncodedPrompt], plan: SamplePlan, progress: Progress = None
) -> list[RolloutRow]:
    """num_replies rows for each prompt, in order. The first head of plan.measured gives their reward, in its
    raw units. Raises like `as_they_end`."""
    of_number = {str(prompt.number): prompt for prompt in prompts}
    return [
        _row(engine, plan, of_number[completion.request.request_id], completion)
        for completion in sample(engine, map(plan.request, prompts), progress)
    ]


def _row(engine: Engine, plan: SamplePlan, prompt: EncodedPrompt, completion: Completion) -> RolloutRow:
    from trimtab.guidance.data.rollouts import RolloutRow  # noqa: PLC0415 (pyarrow)

    seed, summary = completion.request.sampling.seed, completion.summary
    assert seed is not None
    return RolloutRow(
        prompt=prompt.prompt,
        completion=completion.text,
        token_ids=tuple(completion.token_ids),
        is_cut=completion.is_cut,
        prompt_id=prompt.number,
        sample=completion.index,
        seed=seed,
        kl=summary.kl,
        strength=plan.strength,
        temperature=plan.temperature,
        top_p=plan.top_p,
        reward=_raw_reward(engine, plan.measured[0], summary) if plan.measured else None,
        columns=prompt.columns,
    )


def _raw_reward(engine: Engine, head: str, summary: GuidanceSummary) -> float | None:
    """The summary speaks standard units. None where the part gave no finite number."""
    manifest = engine.bank.manifests[engine.bank.names.index(head)]
    reward = dict(summary.reward)[head] * manifest.reward_std + manifest.reward_mean
    return reward if math.isfinite(reward) else None


def sample_measured(
    engine: Engine, prompts: Sequence[EncodedPrompt], plan: SamplePlan, progress: Progress = None
) -> list[MeasuredReply]:
    """What an evaluation keeps of the replies, in order, each with its prompt's place among `prompts`; the
    same noise for each at every setting. Raises like `as_they_end`."""
    plan = replace(plan, trace=True)
    requests = [plan.requests(prompt) for prompt in prompts]
    places = {
        request.request_id: (place, sample)
        for place, alike in enumerate(requests)
        for sample, request in enumerate(alike)
    }
    replies = [
        _measured(*places[completion.request.request_id], completion)
        for completion in as_they_end(engine, [one for alike in requests for one in alike], progress)
    ]
    return sorted(replies, key=lambda reply: (reply.prompt, reply.sample))


def _measured(place: int, sample: int, completion: Completion) -> MeasuredReply:
    summary, tokens, rule = completion.summary, completion.tokens, completion.request.guidance.rule
    return MeasuredReply(
        prompt=place,
        text=completion.text,
        token_ids=tuple(completion.token_ids),
        kl=rule.reply_kl(summary.kl, dict(summary.rule)),
        finish_reason=completion.finish_reason,
        flips=summary.flips,
        logprob=sum(token.logprob for token in tokens),
        base_logprob=sum(token.trace.base_logprob for token in tokens if token.trace),
        rewards=dict(summary.reward),
        sample=sample + completion.index,
        num_run=completion.num_run,
    )
