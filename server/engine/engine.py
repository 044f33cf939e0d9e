"""The engine: requests in, events out, one step at a time."""

from __future__ import annotations

import logging
import secrets
import time
from collections import deque
from dataclasses import dataclass
from functools import partial

import torch

from trimtab.guidance.bank import HeadBank
from trimtab.guidance.errors import HeadError
from trimtab.server.engine.block_manager import BlockManager
from trimtab.server.engine.cache_size import resolve_num_blocks
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.detokenizer import Decode
from trimtab.server.engine.info import EngineInfo, HeadInfo
from trimtab.server.engine.lane import Choice, Lane, Phase
from trimtab.server.engine.loading import load
from trimtab.server.engine.memory import measure_blocks
from trimtab.server.engine.model_runner import ModelRunner
from trimtab.server.engine.policy import Policy
from trimtab.server.engine.reply import Measured, Reply, Scores
from trimtab.server.engine.request import Aborted, Event, Failed, Finished, InvalidRequestError, Request
from trimtab.server.engine.row_needs import RowNeeds
from trimtab.server.engine.sampler import Sampler
from trimtab.server.engine.scheduler import Purpose, Row, Scheduler, Step
from trimtab.server.engine.step_result import StepResult
from trimtab.server.engine.warm_up import warm_up

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class LiveRequest:
    """A request that has not had its terminal event."""

    request: Request
    choices: tuple[Choice, ...]
    replies: tuple[Reply, ...]
    needs: RowNeeds
    head_weights: list[float]
    seed: int

    @property
    def is_done(self) -> bool:
        return all(choice.phase is Phase.DONE for choice in self.choices)

    def finished(self) -> Finished:
        return Finished(
            self.request.request_id,
            num_prompt_tokens=len(self.request.prompt_token_ids),
            num_cached_tokens=self.choices[0].num_cached_tokens,
            num_completion_tokens=sum(len(reply.token_ids) for reply in self.replies),
        )


class Engine:
    """Serves one policy with its heads. Not thread-safe: one thread calls `add`, `abort` and `step`."""

    def __init__(self, policy: Policy, bank: HeadBank, config: EngineConfig) -> None:
        """config: resolved."""
        self.policy, self.bank, self.config = policy, bank, config
        num_blocks = resolve_num_blocks(config, policy, partial(measure_blocks, policy, bank, config))
        blocks = BlockManager(num_blocks, config.block_size, config.prefix_caching)
        self.scheduler = Scheduler(blocks, config.max_num_seqs, config.token_budget)
        self.runner = ModelRunner(policy, config, num_blocks, len(bank.names))
        self.sampler = Sampler(policy, bank, self.runner.state, config.strict)
        if policy.device.type == "cuda":
            warm_up(self.sampler, policy, bank, self.runner.state)
        self._live: dict[str, LiveRequest] = {}
        self._launched: deque[StepResult] = deque()
        self._pending_events: list[Event] = []
        # A reward part reads one token past the reply, so one position is kept for it.
        self._max_model_len = policy.max_model_len - any(bank.has_reward)

    @classmethod
    def from_config(cls, config: EngineConfig) -> Engine:
        """Load the policy and the heads, and check that the policy is served right.

        Raises ModelError or HeadError with one line that names the thing and the fix.
        """
        return cls(*load(config))

    @property
    def info(self) -> EngineInfo:
        bank = self.bank
        heads = zip(
            bank.names, bank.has_advantage, bank.has_value, bank.has_reward, bank.manifests, strict=True
        )
        return EngineInfo(
            model_name=self.policy.name,
            max_model_len=self._max_model_len,
            vocab_size=self.policy.vocab_size,
            eos_token_ids=self.policy.eos_token_ids,
            heads=tuple(HeadInfo(name, a, v, r, manifest.trained_on) for name, a, v, r, manifest in heads),
            created=int(time.time()),
        )

    @property
    def has_work(self) -> bool:
        return bool(self._live or self._pending_events)

    def check(self, request: Request) -> None:
        """Raise InvalidRequestError for what can never be served. Reads only what never changes."""
        num_prompt, limit = len(request.prompt_token_ids), self._max_model_len
        if num_prompt == 0:
            raise InvalidRequestError("prompt: is empty; give at least one token", "prompt")
        if num_prompt >= limit:
            raise InvalidRequestError(
                f"prompt: has {num_prompt} tokens, but this model's context holds {limit} with the reply; "
                "shorten it",
                "prompt",
            )
        if num_prompt + request.sampling.max_tokens > limit:
            raise InvalidRequestError(
                f"max_tokens: {request.sampling.max_tokens} with a prompt of {num_prompt} tokens exceeds "
                f"the context of {limit}; ask for at most {limit - num_prompt}",
                "max_tokens",
            )
        vocab_size = self.policy.vocab_size
        if not all(0 <= token < vocab_size for token in request.prompt_token_ids):
            raise InvalidRequestError(f"prompt: token ids must be 0…{vocab_size - 1}", "prompt")
        if not all(0 <= token < vocab_size for token, _ in request.sampling.logit_bias):
            raise InvalidRequestError(f"logit_bias: token ids must be 0…{vocab_size - 1}", "logit_bias")
        self._check_heads(request)

    def _check_heads(self, request: Request) -> None:
        guidance = request.guidance
        for name, _ in guidance.heads:
            if name not in self.bank.names:
                loaded = ", ".join(self.bank.names) or "none"
                raise InvalidRequestError(
                    f"guidance.heads.{name}: no such head; loaded are: {loaded}", "guidance.heads"
                )
        if guidance.strength and not guidance.heads:
            raise InvalidRequestError(
                "guidance.heads: name at least one head, or set strength 0", "guidance.heads"
            )
        if guidance.strength:
            try:
                self.bank.check([(name, weight) for name, weight in guidance.heads if weight])
            except HeadError as error:
                raise InvalidRequestError(f"guidance.heads: {error}", "guidance.heads") from error

    def add(self, request: Request) -> None:
        """Queue a request. Raises InvalidRequestError at once for what can never be served."""
        self.check(request)
        if request.request_id in self._live:
            raise InvalidRequestError(f"request_id: '{request.request_id}' is in use", "request_id")
        leader = Choice(request, 0, (Lane(list(request.prompt_token_ids)),))
        others = [
            Choice(request, i, (Lane(list(request.prompt_token_ids)),), leader)
            for i in range(1, request.sampling.n)
        ]
        choices = (leader, *others)
        seed = request.sampling.seed
        self._live[request.request_id] = LiveRequest(
            request,
            choices,
            tuple(Reply(request, c.index, self.policy.eos_token_ids, self._decode) for c in choices),
            RowNeeds.of(request, self.bank),
            self.bank.weights_row(request.guidance.heads),
            seed if seed is not None else secrets.randbits(64) - 2**63,
        )
        self.scheduler.add(choices)

    def abort(self, request_id: str) -> None:
        """End a request; its Aborted event comes with the next step. Unknown or finished ids are ignored."""
        live = self._live.get(request_id)
        if live is not None:
            self._end(live, Aborted(request_id))

    def step(self) -> list[Event]:
        """Schedule, run, sample; then read and post-process the oldest launched step."""
        step = self.scheduler.schedule()
        if step.rows:
            self._launch(step)
        keep = (self.config.async_depth or 0) if step.rows else 0
        assert step.rows or step.preempted or self._launched or self._pending_events or not self._live
        while len(self._launched) > keep:
            self._postprocess(self._launched.popleft())
        events, self._pending_events = self._pending_events, []
        return events

    def fail_all(self, message: str) -> list[Event]:
        """End every request with an error: the engine cannot go on."""
        for live in list(self._live.values()):
            self._end(live, Failed(live.request.request_id, message))
        events, self._pending_events = self._pending_events, []
        return events

    def _launch(self, step: Step) -> None:
        try:
            result = self._run(step)
        except RuntimeError as error:
            if isinstance(error, torch.AcceleratorError):
                raise
            logger.exception("a step failed; its requests end with an error")
            for request_id in {row.choice.request.request_id for row in step.rows}:
                self._end(self._live[request_id], Failed(request_id, f"the model failed: {error}"))
            return
        self.scheduler.advance(step)
        self._launched.append(result)

    def _run(self, step: Step) -> StepResult:
        for choice in step.admitted:
            live = self._live[choice.request.request_id]
            spent_kl = live.replies[choice.index].kl
            self.runner.state.admit(choice, live.seed, live.head_weights, spent_kl)
        hidden = self.runner.run(step)
        drawing = [row for row in step.rows if row.purpose is Purpose.DRAW]
        judging = [row for row in step.rows if row.purpose is Purpose.REWARD]
        needs = [self._live[row.choice.request.request_id].needs for row in drawing]
        with torch.inference_mode():
            drawn = self.sampler.draw(hidden, needs) if drawing else None
            rewards = self.sampler.judge(hidden, len(drawing), len(judging)) if judging else None
        return StepResult.send(drawing, needs, drawn, judging, rewards, self.policy.device)

    def _postprocess(self, result: StepResult) -> None:
        for row, reward in result.read_rewards():
            live = self._live.get(row.choice.request.request_id)
            if live is not None and row.choice.phase is not Phase.DONE:
                self._complete(live, row.choice, self._scores(live, reward))
        for row, token in result.read_draws(self.bank.names):
            if row.choice.phase is not Phase.DONE and not row.choice.is_finishing:
                self._take(self._live[row.choice.request.request_id], row, token)

    def _take(self, live: LiveRequest, row: Row, token: Measured) -> None:
        choice, reply = row.choice, live.replies[row.choice.index]
        token_id = token.record.token_id
        if token_id < 0:
            self._fail_poisoned(live)
            return
        for lane in choice.lanes:
            lane.tokens.append(token_id)
            lane.num_inflight -= 1
        self._pending_events.append(reply.push(token))
        if reply.finish_reason is None:
            return
        if live.needs.judging:
            self._begin_finishing(choice, reply)
        else:
            self._complete(live, choice, ())

    def _begin_finishing(self, choice: Choice, reply: Reply) -> None:
        end_id = self.policy.reply_end_id
        tokens = list(choice.lane.tokens)
        if not reply.ended_with_eos and end_id is not None:
            tokens.append(end_id)
        self.scheduler.begin_finishing(choice, tokens)
        self.runner.state.rewrite_last_token(choice.lane)

    def _complete(self, live: LiveRequest, choice: Choice, reward: Scores) -> None:
        self._pending_events.append(live.replies[choice.index].done(reward))
        self.scheduler.finish(choice)
        if live.is_done:
            self._end(live, live.finished())

    def _end(self, live: LiveRequest, event: Finished | Aborted | Failed) -> None:
        """The one place where a request gets its terminal event."""
        for choice in live.choices:
            if choice.phase is not Phase.DONE:
                self.scheduler.finish(choice)
        del self._live[live.request.request_id]
        self._pending_events.append(event)

    def _fail_poisoned(self, live: LiveRequest) -> None:
        """NaN in the cache would pass through even a masked key: scrub what this request alone held."""
        own = [
            block for c in live.choices for lane in c.lanes for block in self.scheduler.blocks.forget(lane)
        ]
        self.runner.cache.clear_blocks(own)
        self._end(live, Failed(live.request.request_id, "the model produced no finite logits"))

    def _scores(self, live: LiveRequest, row: list[float]) -> Scores:
        return tuple((self.bank.names[i], row[i]) for i in live.needs.judging)

    @property
    def _decode(self) -> Decode:
        tokenizer = self.policy.tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None) or tokenizer
        return lambda ids: backend.decode(ids, skip_special_tokens=True)
