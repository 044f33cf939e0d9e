"""First come, first served continuous batching with chunked prefill. No torch, no clock.

The scheduler decides from its queues alone, so that several ranks with the same queues decide alike.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum

from trimtab.server.engine.block_manager import BlockManager, OutOfBlocksError
from trimtab.server.engine.lane import Choice, Lane, Phase


class Purpose(Enum):
    """What a row's hidden states are for."""

    PREFILL = "prefill"
    DRAW = "draw"
    REWARD = "reward"
    FEATURES = "features"


@dataclass(frozen=True, slots=True)
class Row:
    """Consecutive tokens of one lane in one step.

    output_positions: offsets within the row whose hidden states are asked for.
    """

    choice: Choice
    lane: Lane
    start: int
    num_tokens: int
    purpose: Purpose
    output_positions: tuple[int, ...] = ()

    @property
    def end(self) -> int:
        return self.start + self.num_tokens


@dataclass(slots=True)
class Step:
    """One step's work. copies: (source, destination) blocks to copy first, in order.
    admitted: choices whose tokens the device does not hold yet."""

    rows: list[Row] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    admitted: list[Choice] = field(default_factory=list)
    preempted: list[Choice] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(row.num_tokens for row in self.rows)


class Scheduler:
    def __init__(self, blocks: BlockManager, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        self.blocks = blocks
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.waiting: deque[Choice] = deque()
        self.running: list[Choice] = []
        self.considered: Choice | None = None
        """Whom `schedule` has come to: when it raises, whose fault that is."""
        self._free_slots = list(range(max_num_seqs - 1, -1, -1))

    def __bool__(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, choices: Iterable[Choice]) -> None:
        """Enqueue the choices of one request. Followers wait until their leader's prompt is computed."""
        for choice in choices:
            if choice.leader is None:
                self.waiting.append(choice)
            else:
                choice.leader.followers.append(choice)

    def resume(self, choices: Iterable[Choice]) -> None:
        """Enqueue choices that another scheduler has begun with, to be computed anew. Those that still wait
        for their leader's prompt go on waiting."""
        for choice in choices:
            choice.start_over()
            if choice.leader is None or choice not in choice.leader.followers:
                self.waiting.append(choice)

    def schedule(self) -> Step:
        """Pick the rows of the next step: decoding choices first, then prefills, then the waiting queue."""
        step = Step()
        self.considered = None
        budget = self.max_num_batched_tokens
        for is_decoding in (True, False):
            for choice in list(self.running):
                self.considered = choice
                is_turn = self._is_decoding(choice) == is_decoding
                if is_turn and choice.phase is Phase.RUNNING and self._has_work(choice):
                    budget -= self._schedule_running(step, choice, budget)
        if not step.preempted:
            self._admit(step, budget)
        return step

    def advance(self, step: Step) -> None:
        """Account for a launched step: its tokens count as computed, its drawn tokens as in flight."""
        for row in step.rows:
            row.lane.num_computed = row.end
            if row.purpose is Purpose.DRAW:
                row.lane.num_inflight += 1
            self.blocks.register(row.lane)
        for row in step.rows:
            if row.choice.followers and row.output_positions:
                self.waiting.extendleft(reversed(row.choice.followers))
                row.choice.followers = []

    def begin_finishing(self, choice: Choice, tokens: list[int]) -> None:
        """Feed the last token of `tokens` (the prompt and the finished reply) once more, to be judged.

        A token still in flight was drawn past the end; whoever reads it discards it.
        """
        lane = choice.lane
        lane.tokens[:] = tokens
        lane.num_inflight = 0
        self.blocks.truncate(lane, min(lane.num_computed, len(tokens) - 1))
        choice.is_finishing = True

    def finish(self, choice: Choice) -> None:
        """End a choice, wherever it is: its blocks and slots are free afterwards."""
        self._release(choice)
        if choice in self.running:
            self.running.remove(choice)
        elif choice in self.waiting:
            self.waiting.remove(choice)
        choice.followers = []
        choice.phase = Phase.DONE

    def _is_decoding(self, choice: Choice) -> bool:
        return all(lane.remaining <= 1 for lane in choice.lanes) or choice.is_finishing

    def _has_work(self, choice: Choice) -> bool:
        is_wanted = choice.is_reading or choice.is_finishing or choice.can_draw
        return choice.lane.remaining > 0 and is_wanted

    def _schedule_running(self, step: Step, choice: Choice, budget: int) -> int:
        while choice.phase is Phase.RUNNING:
            rows = plan_rows(choice, budget)
            copies = self._reserve(rows)
            if copies is not None:
                step.copies.extend(copies)
                step.rows.extend(rows)
                return sum(row.num_tokens for row in rows)
            self._preempt(step, self._victim(step))
        return 0

    def _victim(self, step: Step) -> Choice:
        """The youngest running choice that this step has not scheduled yet."""
        scheduled = {id(row.choice) for row in step.rows}
        return next(c for c in reversed(self.running) if id(c) not in scheduled)

    def _preempt(self, step: Step, choice: Choice) -> None:
        self._release(choice)
        self.running.remove(choice)
        self.waiting.appendleft(choice)
        choice.phase = Phase.WAITING
        choice.num_preemptions += 1
        step.preempted.append(choice)

    def _release(self, choice: Choice) -> None:
        for lane in choice.lanes:
            self.blocks.free(lane)
            if lane.slot is not None:
                self._free_slots.append(lane.slot)
                lane.slot = None

    def _admit(self, step: Step, budget: int) -> None:
        while self.waiting and budget > 0:
            choice = self.considered = self.waiting[0]
            if len(choice.lanes) > len(self._free_slots) or choice.has_inflight:
                return
            self._find_prefix(choice)
            rows = plan_rows(choice, budget)
            copies = self._reserve(rows)
            if copies is None:
                for lane in choice.lanes:
                    self.blocks.free(lane)
                return
            self._start(choice)
            step.admitted.append(choice)
            step.copies.extend(copies)
            step.rows.extend(rows)
            budget -= sum(row.num_tokens for row in rows)

    def _find_prefix(self, choice: Choice) -> None:
        leader, lane = choice.leader, choice.lane
        num_shared = choice.num_prompt_tokens - 1
        if leader is not None and len(choice.lanes) == 1 and leader.lane.num_computed >= num_shared > 0:
            self.blocks.fork(leader.lane, lane, num_shared)
        else:
            for each in choice.lanes:
                self.blocks.match_prefix(each, choice.read_at[0] if choice.is_reading else None)
        if choice.num_preemptions == 0:
            choice.num_cached_tokens = lane.num_computed

    def _start(self, choice: Choice) -> None:
        self.waiting.popleft()
        self.running.append(choice)
        for lane in choice.lanes:
            lane.slot = self._free_slots.pop()
            lane.num_synced_blocks = 0
        choice.phase = Phase.RUNNING

    def _reserve(self, rows: list[Row]) -> list[tuple[int, int]] | None:
        """Blocks for all rows of one choice, or for none of them."""
        copies: list[tuple[int, int]] = []
        try:
            for row in rows:
                copies.extend(self.blocks.extend(row.lane, row.end))
        except OutOfBlocksError:
            return None
        return copies


def plan_rows(choice: Choice, budget: int) -> list[Row]:
    """The rows with which a choice uses up to `budget` tokens.

    The last token of every lane, the one that yields logits, waits for the step in which all lanes of
    the choice reach their end. A choice that is only read has no such token.
    """
    if choice.is_reading:
        return list(_reading_row(choice, budget))
    rows = list(_rows_within(choice, budget))
    if sum(lane.remaining for lane in choice.lanes) > budget:
        return rows
    if choice.is_finishing:
        return [_full_row(choice, choice.lane, Purpose.REWARD)]
    return [_full_row(choice, lane, Purpose.DRAW) for lane in choice.lanes]


def _rows_within(choice: Choice, budget: int) -> Iterator[Row]:
    for lane in choice.lanes:
        num_tokens = min(lane.remaining - 1, budget)
        if num_tokens > 0:
            yield Row(choice, lane, lane.num_computed, num_tokens, Purpose.PREFILL)
            budget -= num_tokens


def _reading_row(choice: Choice, budget: int) -> Iterator[Row]:
    lane, start = choice.lane, choice.lane.num_computed
    num_tokens = min(choice.read_at[-1] + 1 - start, budget)
    if num_tokens > 0:
        wanted = choice.read_at[bisect_left(choice.read_at, start) :]
        outputs = tuple(at - start for at in wanted if at < start + num_tokens)
        yield Row(choice, lane, start, num_tokens, Purpose.FEATURES, outputs)


def _full_row(choice: Choice, lane: Lane, purpose: Purpose) -> Row:
    return Row(choice, lane, lane.num_computed, lane.remaining, purpose, (lane.remaining - 1,))
