"""Replies for an evaluation, from an engine of our own: only what is measured on is kept of each."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from tqdm.auto import tqdm

from trimtab.guidance.errors import DataError
from trimtab.guidance.evaluation.replies import Heads, Reply
from trimtab.guidance.text.encoding import EncodedReply, ReplyEncoder, Sampled
from trimtab.guidance.text.message import Prompt
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.request import (
    Aborted,
    ChoiceDone,
    Delta,
    Event,
    Failed,
    Guidance,
    Request,
    SamplingParams,
)
from trimtab.server.rollouts.offline import GenerationError

Bias = tuple[tuple[int, float], ...]


@dataclass(slots=True)
class _Growing:
    """One choice's reply so far."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprob: float = 0.0
    base_logprob: float = 0.0

    def take(self, delta: Delta) -> None:
        self.text += delta.text
        for token in delta.tokens:
            assert token.trace is not None
            self.token_ids.append(token.token_id)
            self.logprob += token.logprob
            self.base_logprob += token.trace.base_logprob

    def done(self, prompt: int, event: ChoiceDone) -> Reply:
        return Reply(
            prompt,
            self.text,
            tuple(self.token_ids),
            event.summary.kl,
            event.finish_reason,
            event.summary.flips,
            self.logprob,
            self.base_logprob,
            dict(event.summary.reward),
            event.index,
        )


@dataclass(frozen=True, slots=True)
class Sampler:
    """prompts: of the frontier, in order. sampling: of every reply; its seed is the evaluation's. measured:
    heads whose reward part reads every reply. encoder: what encoded the prompts. rows: of the prompts in
    their file, which seed their replies; by default their order."""

    engine: Engine
    prompts: tuple[Prompt, ...]
    encoded: tuple[tuple[int, ...], ...]
    sampling: SamplingParams
    measured: tuple[str, ...]
    encoder: ReplyEncoder
    rows: tuple[int, ...] = ()
    show_progress: bool = True

    @property
    def num_replies(self) -> int:
        """To each prompt, usually."""
        return self.sampling.n

    def sample(
        self, label: str, *, heads: Heads = (), strength: float = 0.0, num: int | None = None, bias: Bias = ()
    ) -> list[Reply]:
        """Replies in the order of the prompts, the same noise for each at every setting.

        label: of the progress bar. num: of replies per prompt, in place of the usual number.
        """
        named = dict(heads)
        watched = tuple((name, 0.0) for name in self.measured if name not in named)
        guidance = Guidance(strength, (*heads, *watched), trace=True)
        sampling = replace(self.sampling, n=num or self.sampling.n, logit_bias=bias)
        seed, rows = (self.sampling.seed or 0) << 32, self.rows or range(len(self.encoded))
        requests = [
            Request(str(i), ids, replace(sampling, seed=seed + row), guidance, self.encoder.end_id(prompt))
            for i, (row, ids, prompt) in enumerate(zip(rows, self.encoded, self.prompts, strict=True))
        ]
        return _run(self.engine, requests, label, self.show_progress)

    def encode(self, replies: Sequence[Reply]) -> list[EncodedReply]:
        """As they were drawn, each with the token that ends it."""
        return [
            self.encoder.encode(
                self.prompts[reply.prompt],
                reply.text,
                Sampled(reply.token_ids, is_cut=reply.finish_reason == "length"),
            )
            for reply in replies
        ]


def fitting_prompts(
    engine: Engine, prompts: Sequence[Prompt], max_tokens: int, encoder: ReplyEncoder
) -> tuple[list[tuple[Prompt, tuple[int, ...]]], list[int]]:
    """Prompts with their tokens whose replies fit the context, and the numbers of those that do not."""
    limit, fitting, too_long = engine.info.max_model_len, [], []
    for number, prompt in enumerate(prompts):
        ids = encoder.prompt_ids(prompt)
        if len(ids) + max_tokens <= limit:
            fitting.append((prompt, ids))
        else:
            too_long.append(number)
    if not fitting:
        raise DataError(
            f"no prompt fits the context of {limit} with {max_tokens} tokens of reply: lower --max-tokens"
        )
    return fitting, too_long


def _run(engine: Engine, requests: Sequence[Request], label: str, show_progress: bool) -> list[Reply]:
    for request in requests:
        engine.check(request)
    growing = {(r.request_id, i): _Growing() for r in requests for i in range(r.sampling.n)}
    done: dict[tuple[str, int], Reply] = {}
    with tqdm(total=len(growing), desc=label, unit="reply", disable=not show_progress) as bar:
        for event in _events(engine, deque(requests)):
            if isinstance(event, Delta):
                growing[event.request_id, event.index].take(event)
            elif isinstance(event, ChoiceDone):
                key = (event.request_id, event.index)
                done[key] = growing.pop(key).done(int(event.request_id), event)
                bar.update()
            elif isinstance(event, Failed | Aborted):
                raise GenerationError(
                    f"prompt {event.request_id} got no reply: {getattr(event, 'message', 'aborted')}"
                )
    return [done[r.request_id, i] for r in requests for i in range(r.sampling.n)]


def _events(engine: Engine, waiting: deque[Request]) -> Iterator[Event]:
    """Requests are handed over as room comes free: a queue of thousands would only be carried along."""
    live = 0
    while waiting or live:
        while waiting and live < 2 * engine.config.max_num_seqs:
            request = waiting.popleft()
            engine.add(request)
            live += request.sampling.n
        for event in engine.step():
            live -= isinstance(event, ChoiceDone)
            yield event
