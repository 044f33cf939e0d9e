"""Engine: takes requests, gives events, one step at a time."""

from __future__ import annotations

import heapq
import itertools
import logging
import math
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from trimtab.guidance.errors import HeadError
from trimtab.guidance.heads.bank import HeadBank, LoadedHead
from trimtab.guidance.heads.manifest import check_name
from trimtab.guidance.heads.store import load_head
from trimtab.guidance.policy import Policy
from trimtab.guidance.rules import PoolRule, Tilt
from trimtab.kernels.philox import SIFT, random_words
from trimtab.server.engine.block_manager import BlockManager
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.experts import Experts, Models
from trimtab.server.engine.failure import failed, is_device_fault, waited_too_long
from trimtab.server.engine.forbidden import Forbidden
from trimtab.server.engine.grammar import Grammar, Grammars
from trimtab.server.engine.lane import Choice, Lane, Phase
from trimtab.server.engine.live_request import LiveRequest
from trimtab.server.engine.model_runner import Hidden, ModelRunner
from trimtab.server.engine.native.threads import one_torch_thread
from trimtab.server.engine.policy import ServedPolicy
from trimtab.server.engine.population import Population
from trimtab.server.engine.prompt_lookup import PromptLookup
from trimtab.server.engine.reading import GivenToken, Reader, given_tokens
from trimtab.server.engine.rejection import Race
from trimtab.server.engine.replies import Measured, Reply, new_replies
from trimtab.server.engine.request import (
    Aborted,
    EngineInfo,
    EngineStats,
    Event,
    ExpertInfo,
    Failed,
    Finished,
    HeadInfo,
    InvalidRequestError,
    Request,
    Scores,
    check_request,
)
from trimtab.server.engine.row_needs import RowNeeds
from trimtab.server.engine.sampler import Sampler
from trimtab.server.engine.scheduler import Counts, Purpose, Row, Scheduler, Step
from trimtab.server.engine.startup import NO_MODELS, load, measure_blocks, resolve_num_blocks
from trimtab.server.engine.state_recorder import StateRecorder
from trimtab.server.engine.step_result import DrawnRows, GivenTokens, ScoredRows, StepResult
from trimtab.server.engine.warm_up import warm_up

logger = logging.getLogger(__name__)
MIN_WEIGHT, MAX_WEIGHT = 1e-30, 1e30  # a head's scale included: fp32 holds these and their products with h
Read = TypeVar("Read")


class Engine:
    """Serves one policy with its heads. Not thread-safe: one thread calls `add`, `abort` and `step`."""

    def __init__(
        self,
        policy: ServedPolicy,
        bank: HeadBank,
        config: EngineConfig,
        experts: Models = NO_MODELS,
    ) -> None:
        """config: resolved. bank: of a policy that the C++ backend runs, with its vocabulary.

        Raises ValueError for a bank without it where strict needs it: torch's products of heads are not the
        same bits in every batch, and steps of that backend are not padded to one shape.
        """
        if config.strict and policy.native is not None and bank.names and not bank.has_vocabulary:
            raise ValueError("strict needs a bank with the C++ backend's vocabulary: see native.model")
        self.policy, self.bank, self.config = policy, bank, config
        self._is_native = all(model.native is not None for model in (policy, *experts.values()))
        self.grammars = Grammars(policy.tokenizer, policy.vocab_size, policy.eos_token_ids)
        measure = partial(measure_blocks, policy, bank, config, experts=experts)
        num_blocks = resolve_num_blocks(config, policy, measure, experts)
        self.runner = ModelRunner(policy, config, num_blocks, bank.memory_sizes)
        self.experts = Experts(experts, config, num_blocks, self.runner.state)
        self._live: dict[str, LiveRequest] = {}
        self._counts = Counts()
        self._start_over()
        if policy.device.type == "cuda":
            warm_up(self.sampler, policy, bank, self.runner.state)
        self._launched: deque[StepResult] = deque()
        self._pending_events: list[Event] = []
        self._due: list[tuple[float, int, str]] = []  # a heap of when requests have to have begun
        self._arrivals = itertools.count()
        self._recorder: StateRecorder | None = None

    @classmethod
    def from_config(
        cls, config: EngineConfig, chat_template: str | None = None, policy: Policy | None = None
    ) -> Engine:
        """Load the policy and the heads, and check that the policy is served right; see `load`.

        Raises ModelError or HeadError with one line that names the thing and the fix.
        """
        engine = cls(*load(config, chat_template, policy))
        if policy is None:  # the weights are nobody else's
            for served in (engine.policy, *engine.experts.models.values()):
                served.release_weights()
        return engine

    @property
    def info(self) -> EngineInfo:
        return self._info_with(self.bank)

    def _info_with(self, bank: HeadBank) -> EngineInfo:
        return EngineInfo(
            model_name=self.policy.name,
            max_model_len=self._max_model_len,
            vocab_size=self.policy.vocab_size,
            eos_token_ids=self.policy.eos_token_ids,
            heads=tuple(_head_info(bank, name, column) for name, column in bank.offered.items()),
            created=int(time.time()),
            max_num_seqs=self.config.max_num_seqs,
            num_blocks=self.runner.cache.num_blocks - 1,
            block_size=self.config.block_size,
            can_reason=self.policy.tags is not None,
            experts=tuple(
                ExpertInfo(name, length - self._reads_end) for name, length in self.experts.lengths.items()
            ),
        )

    @property
    def _max_model_len(self) -> int:
        """A reward part reads one token past the reply, and so does a recorder: a position is kept for it."""
        return self.policy.max_model_len - self._reads_end

    @property
    def _reads_end(self) -> bool:
        may_have_reward = any(self.bank.has_reward) or self.config.num_vacant_heads > 0
        return may_have_reward or self._recorder is not None

    def record(self, recorder: StateRecorder) -> None:
        """From now on all replies run to their ends, and the recorder keeps their hidden states."""
        assert not self._live, "requests under way would be recorded in part"
        self._recorder = recorder

    @property
    def stats(self) -> EngineStats:
        """May be read from any thread, between two steps or within one."""
        scheduler, running = self.scheduler, list(self.scheduler.running)
        blocks = scheduler.blocks
        return EngineStats(
            num_running=len(running),
            num_waiting=scheduler.num_waiting,
            num_guided=sum(choice.request.guidance.is_guided for choice in running),
            cache_usage=1 - blocks.num_free / max(blocks.num_usable, 1),
            prefix_queries=self._counts.prefix_queries,
            prefix_hits=self._counts.prefix_hits,
            num_preemptions=self._counts.num_preemptions,
            num_drafted=self._counts.num_drafted,
            num_accepted=self._counts.num_accepted,
        )

    @property
    def has_work(self) -> bool:
        return bool(self._live or self._pending_events)

    def check(self, request: Request) -> None:
        """Raise InvalidRequestError for what cannot be served. Any thread may call it."""
        bank = self.bank
        check_request(request, self._info_with(bank))
        weights = bank.weights_row(request.guidance.heads)
        if not all(weight == 0 or MIN_WEIGHT < abs(weight) < MAX_WEIGHT for weight in weights):
            what = "a weight times its head's scale is beyond what fp32 holds"
            raise InvalidRequestError(what, "guidance.heads")

    def add(self, request: Request, grammar: Grammar | None = None) -> None:
        """Queue a request. Raises InvalidRequestError at once for what can never be served; whatever is
        raised, nothing of the request is left. grammar: the request's, if it is compiled already."""
        self.check(request)
        if request.request_id in self._live:
            raise InvalidRequestError(f"'{request.request_id}' is in use", "request_id")
        if grammar is None and request.grammar is not None:
            grammar = self.grammars.compile(request.grammar)
        live = self._new_live(request, grammar)
        try:
            self.scheduler.add(live.choices)
        except BaseException:
            self._release(live)
            raise
        self._live[request.request_id] = live
        if request.max_wait is not None:
            due = live.arrived + request.max_wait
            heapq.heappush(self._due, (due, next(self._arrivals), request.request_id))

    def _new_live(self, request: Request, grammar: Grammar | None) -> LiveRequest:
        needs, guidance = RowNeeds.of(request, self.bank), request.guidance
        remembers = bool(needs.remembering)
        root = self.experts.root(guidance.rule.experts)
        read_at = _read_at(request)
        leader = Choice(request, 0, _new_lanes(request, root), remembers=remembers, read_at=read_at)
        num_choices = 1 if guidance.rule.is_pool else request.sampling.n
        others = [
            Choice(request, i, _new_lanes(request, root), leader, remembers=remembers)
            for i in range(1, num_choices)
        ]
        choices = (leader, *others)
        seed, rejection = request.sampling.seed, request.rejection
        policy = self.policy
        replies = new_replies(request, policy.eos_token_ids, policy.text, policy.tags, grammar)
        live = LiveRequest(
            request,
            choices,
            replies,
            needs,
            self.bank.weights_row(guidance.heads if guidance.rule.tilts else ()),
            seed if seed is not None else secrets.randbits(64) - 2**63,
            None if rejection is None else Race(rejection, choices),
        )
        if request.sampling.forbids and not request.given:
            ends = {*policy.eos_token_ids, *replies[0].stop_ids}
            live.forbidden = Forbidden(request.sampling, tuple(ends), policy.vocab_size)
        if self.config.speculate == "ngram" and self._recorder is None and _can_draft(request, needs):
            for choice in choices:
                choice.lane.lookup = PromptLookup()
        if isinstance(guidance.rule, PoolRule):
            live.population = Population(replies[0], guidance, partial(_uniform, live.seed))
        return live

    def abort(self, request_id: str) -> None:
        """End a request; its Aborted event comes with the next step. Unknown or finished ids are ignored."""
        live = self._live.get(request_id)
        if live is not None:
            self._end(live, Aborted(request_id))

    def read_head(self, folder: Path, name: str) -> LoadedHead:
        """A head that fits, to be called `name`. Any thread may call it. Raises HeadError."""
        check_name(name)
        policy = self.policy
        head, manifest = load_head(folder, policy.identity, device=policy.device, dtype=policy.dtype)
        return head, replace(manifest, name=name)

    def add_head(self, loaded: LoadedHead) -> None:
        """From now on requests can ask for it; those under way go on as they were. Raises HeadError where its
        name is taken, or no room is left."""
        self._change_heads(self.bank.vacated(self._unused_columns()).with_head(loaded))

    def drop_head(self, name: str) -> None:
        """From now on no request can ask for it; those that have go on with it. Raises HeadError where there
        is none."""
        if name not in self.bank.offered:
            raise HeadError(
                f"head {name!r} is not loaded: loaded are {', '.join(self.bank.offered) or 'none'}"
            )
        self.bank = self.bank.without_head(name)
        self._change_heads(self.bank.vacated(self._unused_columns()))

    def _unused_columns(self) -> list[int]:
        used = set[int]().union(*(live.needs.heads for live in self._live.values()))
        return [column for column in self.bank.withdrawn if column not in used]

    def _change_heads(self, bank: HeadBank) -> None:
        """Between two steps. What rows have in the device's state stays where it is."""
        self.bank = bank
        self.runner.state.remember_for(bank.memory_sizes)
        self._read_bank()

    def step(self) -> list[Event]:
        """Schedule, run, sample; then read and post-process the oldest launched step.

        What goes wrong ends the requests that it concerns with Failed. Raises only where the engine cannot
        go on: the device has failed.
        """
        with one_torch_thread() if self._is_native else nullcontext():
            return self._step()

    def _step(self) -> list[Event]:
        if self._is_suspect:  # something failed since the last step
            self._start_over()
        step = self._schedule()
        keep = (self.config.async_depth or 0) if step.rows and self._launch(step) else 0
        while len(self._launched) > keep:
            self._postprocess(self._launched.popleft())
        if self._is_suspect:
            self._start_over()
        events, self._pending_events = self._pending_events, []
        return events

    def _end_overdue(self) -> None:
        """Requests that should have begun by now."""
        while self._due and self._due[0][0] <= time.monotonic():
            live = self._live.get(heapq.heappop(self._due)[2])
            if live is not None and live.taken_up is None:
                self._end(live, waited_too_long(live.request.request_id))

    def _schedule(self) -> Step:
        try:
            self.scheduler.considered = None  # nobody of this step yet
            self._end_overdue()
            step = self.scheduler.schedule()
            assert step.rows or step.preempted or self._launched or self._pending_events or not self._live
            self._admit(step)
        except Exception as error:
            self._contain_step(error, self._considered())
            return Step()
        return step

    def _considered(self) -> list[str]:
        """Whom the scheduler had come to when it failed; everyone if that is unknown."""
        culprit = self.scheduler.considered
        if culprit is not None and culprit.request.request_id in self._live:
            return [culprit.request.request_id]
        return list(self._live)

    def _admit(self, step: Step) -> None:
        for choice in step.admitted:
            live = self._live.get(choice.request.request_id)
            if live is None:  # another choice of it has just failed here
                continue
            live.take_up()
            try:
                self._tell_state(live, choice)
            except Exception as error:
                self._contain(error, (choice.request.request_id,))
        step.rows = [row for row in step.rows if row.choice.phase is not Phase.DONE]

    def _tell_state(self, live: LiveRequest, choice: Choice) -> None:
        for lane in choice.lanes:
            if not lane.is_companion:  # where nothing is drawn
                self._tell_lane(live, choice, lane)

    def _tell_lane(self, live: LiveRequest, choice: Choice, lane: Lane, parent: Lane | None = None) -> None:
        """parent: whose reply the lane goes on with."""
        tags, spent = self.policy.tags, live.reply_in(choice, lane).kl
        reasons = live.needs.reads_part and tags is not None and tags.reasons_after(lane.tokens)
        self.runner.state.admit_lane(choice, lane, live.seed, live.head_weights, spent, parent, reasons)

    def _launch(self, step: Step) -> bool:
        try:
            result = self._run(step)
            self.scheduler.advance(step)
        except Exception as error:
            self._contain_step(error, {row.choice.request.request_id for row in step.rows})
            return False
        self._launched.append(result)
        return True

    def _run(self, step: Step) -> StepResult:
        hidden, advice = self.runner.run(step), self.experts.run(step)
        drawing = [
            row
            for row in step.rows
            if row.purpose is Purpose.DRAW and not row.lane.is_companion
            for _ in row.output_positions
        ]
        judging = [row for row in step.rows if row.purpose is Purpose.REWARD]
        measuring = [row for row in step.rows if row.purpose is Purpose.MEASURE]
        needs = [self._live[row.choice.request.request_id].needs for row in drawing]
        if self._recorder is not None:
            self._recorder.take([*drawing, *judging], hidden.h)
        with torch.inference_mode():
            given = self._read(step, hidden)
            masks = self._masks(drawing)
            drawn = self.sampler.draw(hidden, needs, drawing, masks, advice) if drawing else None
            rewards = self.sampler.judge(hidden, len(drawing), len(judging)) if judging else None
            slots = [row.lane.slot for row in measuring if row.lane.slot is not None]
            values = self.sampler.measure(hidden, len(drawing) + len(judging), slots) if slots else None
        return StepResult.send(
            DrawnRows(drawing, needs, drawn),
            given,
            ScoredRows(judging, rewards),
            ScoredRows(measuring, values),
            self.policy.device,
        )

    def _masks(self, drawing: Iterable[Row]) -> list[np.ndarray]:
        """Of rows that have any; worked out while the device runs. Where they depend on a row's last tokens,
        these have been read."""
        lives = ((self._live[row.choice.request.request_id], row) for row in drawing)
        return [live.mask(row) for live, row in lives if live.needs.has_mask]

    def _read(self, step: Step, hidden: Hidden) -> GivenTokens:
        """What is read and not drawn from: replies that are given; and for a value that remembers, those that
        are computed again, as after a preemption."""
        kinds = (Purpose.PREFILL, Purpose.FEATURES)
        rows = [row for row in step.rows if row.purpose in kinds and row.output_positions]
        if not rows:
            return GivenTokens([], [], None)
        parts = hidden.features.split([len(row.output_positions) for row in rows])
        given, needs, states = list[GivenToken](), list[RowNeeds](), list[Tensor]()
        for row, h in zip(rows, parts, strict=True):
            need = self._live[row.choice.request.request_id].needs
            if row.purpose is Purpose.FEATURES:
                tokens = given_tokens(row)
                given += tokens
                needs += [need] * len(tokens)
                states.append(h)
            else:
                assert row.lane.slot is not None
                self.sampler.recall(row.lane.slot, h, need.remembering)
        read = self.reader.read(torch.cat(states), given, needs) if given else None
        return GivenTokens(given, needs, read)

    def _postprocess(self, result: StepResult) -> None:
        try:
            rewards, values = list(result.read_rewards()), list(result.read_values())
            draws = list(result.read_draws(self.bank.names))
            given = list(result.read_given(self.bank.names))
        except Exception as error:
            self._contain(error, {row.choice.request.request_id for row in result.rows})
            return
        for row, reward in rewards:
            if row.choice.phase is not Phase.DONE:
                self._process(row, self._judge, reward)
        for row, value in values:
            if row.choice.phase is not Phase.DONE:
                self._process(row, self._weigh, value)
        for row, tokens in draws:
            if row.choice.phase is not Phase.DONE:
                self._process(row, self._take_all, tokens)
        for place, token in given:
            if place.row.choice.phase is not Phase.DONE and not place.row.choice.is_finishing:
                self._process(place.row, partial(self._hear, index=place.index), token)

    def _take_all(self, live: LiveRequest, row: Row, tokens: Sequence[Measured]) -> None:
        """The row's token, and those behind its drafts as far as these were right."""
        num_accepted = 0
        for index, token in enumerate(tokens):
            is_past_its_end = row.choice.is_finishing or row.lane.is_over
            if row.choice.phase is Phase.DONE or is_past_its_end:
                break
            self._take(live, row, token)
            num_accepted = index
            if index < len(row.drafts) and row.drafts[index] != token.record.token_id:
                break
        if row.drafts:
            self.scheduler.settle_drafts(row, num_accepted)

    def _process(self, row: Row, work: Callable[[LiveRequest, Row, Read], None], read: Read) -> None:
        """What is done for one row alone, and fails for its request alone."""
        request_id = row.choice.request.request_id
        try:
            work(self._live[request_id], row, read)
        except Exception as error:
            self._contain(error, (request_id,))

    def _judge(self, live: LiveRequest, row: Row, reward: list[float]) -> None:
        if self._recorder is not None and self._put_end(live, row.choice):
            return
        scores = self._scores(live, reward)
        if all(math.isfinite(score) for _, score in scores):
            self._complete(live, row.choice, scores)
        else:
            self._fail_unmeasured(live)

    def _take(self, live: LiveRequest, row: Row, token: Measured) -> None:
        choice, reply = row.choice, live.reply_in(row.choice, row.lane)
        token_id = token.record.token_id
        if token_id < 0:
            self._fail_without_token(live, reply)
            return
        if not token.is_finite:
            self._fail_unmeasured(live)
            return
        live.note_token()
        if live.population is not None:
            self._grow(live.population, row, token)
            return
        for lane in choice.lanes:
            lane.tokens.append(token_id)
            lane.num_inflight -= 1
        self._pending_events.append(reply.push(token))
        if reply.finish_reason is not None:
            self._close(live, choice)
        elif live.race is not None:
            live.race.take(choice, len(reply.token_ids), token.value)
        if live.race is not None:
            self._reject(live, live.race.behind())

    def _hear(self, live: LiveRequest, row: Row, token: Measured, index: int) -> None:
        """One token of a reply that is given; of one that is computed again, some were heard before."""
        reply = live.replies[row.choice.index]
        if token.record.token_id < 0:
            self._fail_without_token(live, reply)
        elif not token.is_finite:
            self._fail_unmeasured(live)
        elif index == len(reply.token_ids):
            self._pending_events.append(reply.push(token))
            if reply.finish_reason is not None:
                self._close(live, row.choice)

    def _grow(self, population: Population, row: Row, token: Measured) -> None:
        """One token of one lane of a pool; all are measured once none can draw any more."""
        lane, choice = row.lane, row.choice
        lane.tokens.append(token.record.token_id)
        lane.num_inflight -= 1
        if population.grow(lane.index, token):
            self.scheduler.end_lane(lane)
        if choice.can_draw or any(each.num_inflight for each in choice.lanes):
            return
        choice.is_measuring = True
        population.awaited = {each.index for each in choice.open_lanes}

    def _weigh(self, live: LiveRequest, row: Row, values: list[float]) -> None:
        """Value of one lane of a pool that stands still; with the last of them all go on or one is picked."""
        population, choice = live.population, row.choice
        assert population is not None
        scores = tuple((self.bank.names[i], values[i]) for i in live.needs.measuring)
        if not all(math.isfinite(score) for _, score in scores):
            self._fail_unmeasured(live)
            return
        population.measure(row.lane.index, scores)
        if row.lane.is_over:
            self.scheduler.close_lane(row.lane)
        if population.awaited:
            return
        if not population.is_over:
            self._sift(live, population, choice)
        if population.is_over:
            self._settle(live, population, choice)

    def _settle(self, live: LiveRequest, population: Population, choice: Choice) -> None:
        """All of a pool's replies are complete; those that are returned are choices by themselves."""
        places = population.pick()
        self._pending_events.extend(population.take_rest(places))
        live.replies = tuple(population.particles[place].reply for place in places)
        live.choices = self.scheduler.settle(choice, [choice.lanes[place] for place in places])
        live.population = None
        for each in live.choices:
            self._close(live, each)

    def _sift(self, live: LiveRequest, population: Population, choice: Choice) -> None:
        parents, rule = population.sift(), live.request.guidance.rule
        assert isinstance(rule, PoolRule)
        self.scheduler.refork(choice, parents, rule.block)
        for lane, place in zip(choice.lanes, parents, strict=True):
            parent = choice.lanes[place]
            if parent is not lane and lane.slot is not None:
                self._tell_lane(live, choice, lane, parent)
        self._pending_events.extend(population.take_common())

    def _close(self, live: LiveRequest, choice: Choice) -> None:
        """The reply is complete; a reward part reads it once more."""
        if live.needs.judging or self._recorder is not None:
            # Recorded, a cut reply's last token is fed alone first: a step gives h at its last token only.
            if self._recorder is not None or not self._put_end(live, choice):
                self.scheduler.begin_finishing(choice, list(choice.lane.tokens))
        else:
            self._complete(live, choice, ())

    def _reject(self, live: LiveRequest, behind: Sequence[Choice]) -> None:
        for choice in behind:
            self._pending_events.append(live.replies[choice.index].reject(choice.num_run_for_reply))
            self._finish(choice)

    def _put_end(self, live: LiveRequest, choice: Choice) -> bool:
        """Feeds the token that ends a reply to one that ended otherwise, once. Whether there is one."""
        reply, end_id, tokens = live.replies[choice.index], live.request.end_token_id, choice.lane.tokens
        end_id = self.policy.reply_end_id if end_id is None else end_id
        is_put = len(tokens) > choice.num_prompt_tokens + len(reply.token_ids)
        if reply.ended_with_eos or end_id is None or is_put:
            return False
        self.scheduler.begin_finishing(choice, [*tokens, end_id])
        return True

    def _complete(self, live: LiveRequest, choice: Choice, reward: Scores) -> None:
        self._pending_events.append(live.replies[choice.index].done(choice.num_run_for_reply, reward))
        self._finish(choice)
        if live.is_done:
            self._end(live, live.finished())

    def _end(self, live: LiveRequest, event: Finished | Aborted | Failed) -> None:
        """The one place where a request gets its terminal event."""
        del self._live[live.request.request_id]
        self._pending_events.append(event)
        self._release(live)

    def _release(self, live: LiveRequest) -> None:
        for choice in live.choices:
            if choice.phase is not Phase.DONE:
                self._finish(choice)

    def _finish(self, choice: Choice) -> None:
        """Free a choice's blocks and slots. Never raises: if one cannot be freed the schedule starts over."""
        try:
            self.scheduler.finish(choice)
        except Exception:
            logger.exception("a choice of %s cannot be released", choice.request.request_id)
            choice.phase, self._is_suspect = Phase.DONE, True

    def _fail_without_token(self, live: LiveRequest, reply: Reply) -> None:
        if reply.grammar is not None and reply.grammar.problem:
            message = f"the reply cannot go on within its grammar: {reply.grammar.problem}"
            self._end(live, failed(live.request.request_id, message))
            return
        self._scrub([live])
        self._end(live, failed(live.request.request_id, "the model produced no finite logits"))

    def _fail_unmeasured(self, live: LiveRequest) -> None:
        """A head's weights can be finite and what they sum up to not; JSON has no word for that."""
        names = ", ".join(self.bank.names[i] for i in {*live.needs.measuring, *live.needs.judging})
        message = f"a head gave a number that is not finite ({names})"
        self._end(live, failed(live.request.request_id, message))

    def _scrub(self, lives: Iterable[LiveRequest]) -> None:
        """NaN in the cache would pass through even a masked key: clear what these requests alone held."""
        lanes = [lane for live in lives for choice in live.choices for lane in choice.lanes]
        blocks = [block for lane in lanes for block in self.scheduler.blocks.forget(lane)]
        self.runner.cache.clear_blocks(blocks)
        self.experts.clear_blocks(blocks)

    def _contain(self, error: Exception, request_ids: Iterable[str]) -> None:
        """End the requests that an error concerns. Raises it when the device has not survived it."""
        if is_device_fault(error, self.policy.device):
            raise error
        lives = [self._live[name] for name in request_ids if name in self._live]
        names = ", ".join(live.request.request_id for live in lives)
        logger.error("an error ends %s", names or "no request", exc_info=error)
        for live in lives:
            self._end(live, failed(live.request.request_id))

    def _contain_step(self, error: Exception, request_ids: Iterable[str]) -> None:
        """The same for one that has left a step half done. Whoever still lives begins again, as after a
        preemption, with a schedule and device state that are known to be right."""
        concerned = [name for name in request_ids if name in self._live]
        try:
            self._scrub(self._live[name] for name in concerned)
        except Exception:
            logger.exception("cache blocks of a failed step cannot be cleared")
        self._contain(error, concerned)
        self._start_over()

    def _start_over(self) -> None:
        config, state = self.config, self.runner.state
        blocks = BlockManager(self.runner.cache.num_blocks, config.block_size, config.prefix_caching)
        self.scheduler = Scheduler(blocks, config.max_num_seqs, config.token_budget, self._counts)
        self._read_bank()
        state.forget_notes()
        choices = [choice for live in self._live.values() for choice in live.choices]
        self.scheduler.resume(choice for choice in choices if choice.phase is not Phase.DONE)
        self._is_suspect = False

    def _read_bank(self) -> None:
        state, probe = self.runner.state, self.runner.probe
        self.sampler = Sampler(self.policy, self.bank, state, self.config.strict, probe=probe)
        self.reader = Reader(self.policy, self.bank, state)

    def _scores(self, live: LiveRequest, row: list[float]) -> Scores:
        return tuple((self.bank.names[i], row[i]) for i in live.needs.judging)


def _head_info(bank: HeadBank, name: str, column: int) -> HeadInfo:
    manifest = bank.manifest(column)
    parts = (bank.has_advantage[column], bank.has_value[column], bank.has_reward[column])
    return HeadInfo(name, *parts, manifest.trained_on, manifest.rows, bank.value_per_advantage[column])


def _new_lanes(request: Request, root: int) -> tuple[Lane, ...]:
    """Of one choice: the lane that is drawn from and the companion that its rule asks for, or a pool."""
    rule, prompt = request.guidance.rule, request.prompt_token_ids
    own, plain = ((number, request.salt) if request.salt else number for number in (root, 0))
    if request.given:
        return (Lane([*prompt, *request.given], root=plain),)
    if rule.is_pool:
        return tuple(Lane(list(prompt), index=index, root=plain) for index in range(rule.num_lanes))
    lane, companion = Lane(list(prompt), num_probes=rule.num_probes, root=own), rule.companion
    return (lane, Lane(list(companion), is_companion=True, root=plain)) if companion else (lane,)


def _can_draft(request: Request, needs: RowNeeds) -> bool:
    """Whether the request's tokens are known before they are drawn but for the model's own word: greedy ones,
    which nothing depends on that a reply leaves behind from token to token."""
    has_history = needs.has_mask or needs.has_penalties or needs.controls or needs.remembering
    is_tilt = isinstance(request.guidance.rule, Tilt)
    return needs.is_greedy and is_tilt and not (has_history or request.given or request.rejection)


def _read_at(request: Request) -> Sequence[int]:
    """Where the tokens of a given reply are predicted: from the last of the prompt on."""
    first = len(request.prompt_token_ids) - 1
    return range(first, first + len(request.given))


def _uniform(seed: int, number: int) -> float:
    """In (0, 1), the same for a seed and a number wherever and whenever."""
    words = random_words(
        torch.tensor([seed]), torch.tensor([number]), torch.zeros(1, dtype=torch.long), 1, SIFT
    )
    word = words[0]
    return (int(word) + 0.5) * 2.0**-32
