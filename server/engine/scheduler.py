"""First come, first served continuous batching with chunked prefill. No torch, no clock.

The scheduler decides from its queues alone, so that several ranks with the same queues decide alike.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from itertools import chain

from trimtab.server.engine.block_manager import BlockManager, ChainKey, OutOfBlocksError
from trimtab.server.engine.lane import Choice, Lane, Phase
from trimtab.server.engine.waiting_line import WaitingLine

SHORT_SHARE = 4  # see Scheduler


class Purpose(Enum):
    """What a row's hidden states are for."""

    PREFILL = "prefill"
    DRAW = "draw"
    REWARD = "reward"
    FEATURES = "features"


@dataclass(slots=True)
class Row:
    """Consecutive tokens of one lane in one step. Never changed; frozen, it would take twice as long to make.

    output_positions: offsets within the row whose hidden states are asked for; of a prefill those of a reply
    that is computed again, for a value that remembers it.
    is_plain: a single token, of the lane's last block, after which one is drawn; as most rows are.
    """

    choice: Choice
    lane: Lane
    start: int
    num_tokens: int
    purpose: Purpose
    output_positions: tuple[int, ...] = ()
    is_plain: bool = False

    @property
    def end(self) -> int:
        return self.start + self.num_tokens


@dataclass(slots=True)
class Step:
    """One step's work. copies: (source, destination) blocks to copy first, in order.
    admitted: choices that the device does not know of yet."""

    rows: list[Row] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    admitted: list[Choice] = field(default_factory=list)
    preempted: list[Choice] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(row.num_tokens for row in self.rows)


@dataclass(frozen=True, slots=True)
class _Refusal:
    """A waiting choice that found too few blocks. It cannot do better before the pool has freed so many in
    all, or holds more of its prefix, unless it is to compute fewer tokens."""

    choice: Choice
    budget: int
    num_freed: int
    next_keys: tuple[ChainKey, ...]


class Scheduler:
    """running, waiting: in the order of arrival, a preempted choice before all that wait.

    A choice is *short* if one step could hold its prompt, and long otherwise. Of the tokens that decoding
    leaves, the long ones let a SHORT_SHARE-th to the short ones as long as any of these are behind them.
    So a short prompt whose slots and blocks are free begins at once, whatever long ones came before it, and
    draws after ⌈n / share⌉ steps, with n the tokens of the short prompts up to it. Within short and long
    alike the first come is the first served.
    """

    def __init__(self, blocks: BlockManager, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        self.blocks = blocks
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.waiting = WaitingLine(max_num_batched_tokens)
        self.running: dict[Choice, None] = {}
        self.considered: Choice | None = None
        """Whom `schedule` has come to: when it raises, whose fault that is."""
        self._free_slots = list(range(max_num_seqs - 1, -1, -1))
        self._refusal: _Refusal | None = None

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
        step, prefilling = Step(), []
        self.considered = None
        budget = self.max_num_batched_tokens
        for choice in tuple(self.running):
            if choice.phase is not Phase.RUNNING:
                continue
            self.considered = choice
            if budget > 0 and self._draws_next(choice):
                lane = choice.lane
                step.rows.append(Row(choice, lane, lane.num_computed, 1, Purpose.DRAW, (0,), is_plain=True))
                budget -= 1
            elif not _is_decoding(choice):
                prefilling.append(choice)
            elif _has_work(choice):
                budget -= self._schedule_running(step, choice, budget)
        if budget > 0 and (prefilling or self.waiting):
            self._prefill(step, prefilling, budget)
        return step

    def advance(self, step: Step) -> None:
        """Account for a launched step: its tokens count as computed, its drawn tokens as in flight."""
        for row in step.rows:
            lane = row.lane
            lane.num_computed = row.start + row.num_tokens
            if row.purpose is Purpose.DRAW:
                lane.num_inflight += 1
            if lane.num_computed // self.blocks.block_size > len(lane.chain):
                self.blocks.register(lane)
            if row.choice.followers and row.output_positions:
                self.waiting.put_first(row.choice.followers)
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
            del self.running[choice]
        elif choice in self.waiting:
            self.waiting.remove(choice)
        if self._refusal is not None and self._refusal.choice is choice:
            self._refusal = None
        choice.followers = []
        choice.phase = Phase.DONE

    def _draws_next(self, choice: Choice) -> bool:
        """Whether a choice draws without any more ado, as most do in most steps. Reserves the block."""
        lane = choice.lane
        length = len(lane.tokens) + lane.num_inflight
        is_decoding = choice.is_single and not choice.is_finishing and length - lane.num_computed == 1
        is_due = not (choice.awaits_draws and lane.num_inflight)
        return is_decoding and is_due and length < choice.max_length and self.blocks.append(lane)

    def _prefill(self, step: Step, prefilling: list[Choice], budget: int) -> None:
        spare = self._spare(prefilling, budget)
        for choice in prefilling:
            self.considered = choice
            limit = budget if choice.is_short else budget - spare
            if choice.phase is Phase.RUNNING and limit > 0 and _has_work(choice):
                num_tokens = self._schedule_running(step, choice, limit)
                budget -= num_tokens
                if choice.is_short:
                    spare = max(spare - num_tokens, 0)
        if not step.preempted:
            self._admit(step, budget, spare)

    def _spare(self, prefilling: list[Choice], budget: int) -> int:
        """Tokens that long prompts let to short ones in this step."""
        share, wanted = -(-budget // SHORT_SHARE), 0
        can_admit = self._free_slots and self._refusal is None
        for choice in chain(prefilling, self.waiting.short if can_admit else ()):
            if wanted >= share:
                return share
            if choice.is_short:
                wanted += sum(lane.remaining for lane in choice.lanes)
        return min(wanted, share)

    def _schedule_running(self, step: Step, choice: Choice, budget: int) -> int:
        while choice.phase is Phase.RUNNING:
            rows = plan_rows(choice, budget)
            try:
                self._reserve(rows, step.copies)
            except OutOfBlocksError:
                self._preempt(step, self._victim(step))
                continue
            step.rows.extend(rows)
            return sum(row.num_tokens for row in rows)
        return 0

    def _victim(self, step: Step) -> Choice:
        """The youngest running choice that this step has not scheduled yet."""
        scheduled = {id(row.choice) for row in step.rows}
        return next(c for c in reversed(self.running) if id(c) not in scheduled)

    def _preempt(self, step: Step, choice: Choice) -> None:
        self._release(choice)
        del self.running[choice]
        self.waiting.put_first([choice])
        choice.phase = Phase.WAITING
        choice.num_preemptions += 1
        step.preempted.append(choice)

    def _release(self, choice: Choice) -> None:
        for lane in choice.lanes:
            self.blocks.free(lane)
            if lane.slot is not None:
                self._free_slots.append(lane.slot)
                lane.slot = None

    def _admit(self, step: Step, budget: int, spare: int) -> None:
        while (choice := self._next_waiting(budget, spare)) is not None:
            self.considered = choice
            limit = budget if choice.is_short else budget - spare
            if len(choice.lanes) > len(self._free_slots) or choice.has_inflight:
                return
            rows = self._try_to_start(step, choice, limit)
            if rows is None:
                return
            step.rows.extend(rows)
            num_tokens = sum(row.num_tokens for row in rows)
            budget -= num_tokens
            if choice.is_short:
                spare = max(spare - num_tokens, 0)

    def _next_waiting(self, budget: int, spare: int) -> Choice | None:
        """The first that waits; but the first short one where no tokens are left for long ones."""
        if not self.waiting or budget <= 0:
            return None
        first = self.waiting[0]
        return first if first.is_short or budget > spare else next(iter(self.waiting.short), None)

    def _try_to_start(self, step: Step, choice: Choice, budget: int) -> list[Row] | None:
        """Rows of a choice that runs from now on, or None where blocks are wanting."""
        if self._is_still_refused(choice, budget):
            return None
        self._find_prefix(choice)
        rows, copies = plan_rows(choice, budget), list[tuple[int, int]]()
        try:
            self._reserve(rows, copies)
        except OutOfBlocksError as error:
            self._refuse(choice, budget, error.num_missing)
            return None
        self._refusal = None
        self._start(choice)
        step.admitted.append(choice)
        step.copies.extend(copies)
        return rows

    def _refuse(self, choice: Choice, budget: int, num_missing: int) -> None:
        next_keys = tuple(self.blocks.next_key(lane) for lane in choice.lanes)
        for lane in choice.lanes:
            self.blocks.free(lane)
        self._refusal = _Refusal(choice, budget, self.blocks.num_freed + num_missing, next_keys)

    def _is_still_refused(self, choice: Choice, budget: int) -> bool:
        """Whether to look for the prefix once more would be in vain."""
        refusal = self._refusal
        return (
            refusal is not None
            and refusal.choice is choice
            and budget >= refusal.budget
            and self.blocks.num_freed < refusal.num_freed
            and not any(self.blocks.is_registered(key) for key in refusal.next_keys)
        )

    def _find_prefix(self, choice: Choice) -> None:
        leader, lane = choice.leader, choice.lane
        num_shared = choice.num_prompt_tokens - 1
        if leader is not None and len(choice.lanes) == 1 and leader.lane.num_computed >= num_shared > 0:
            self.blocks.fork(leader.lane, lane, num_shared)
        else:
            for each in choice.lanes:
                self.blocks.match_prefix(each, _most_cached(choice))
        if choice.num_preemptions == 0:
            choice.num_cached_tokens = lane.num_computed

    def _start(self, choice: Choice) -> None:
        self.waiting.remove(choice)
        self.running[choice] = None
        for lane in choice.lanes:
            lane.slot = self._free_slots.pop()
            lane.num_synced_blocks = 0
        choice.phase = Phase.RUNNING

    def _reserve(self, rows: list[Row], copies: list[tuple[int, int]]) -> None:
        """Blocks for all rows of one choice. copies: gets those to copy first.

        Raises OutOfBlocksError where the pool has too few: make room and plan again, or free the lanes.
        """
        for row in rows:
            copies.extend(self.blocks.extend(row.lane, row.end))


def _is_decoding(choice: Choice) -> bool:
    """Whether all that is left to compute is the last token, or what ends a reply that is to be judged."""
    most = 2 if choice.is_finishing else 1
    return all(lane.remaining <= most for lane in choice.lanes)


def _has_work(choice: Choice) -> bool:
    is_wanted = choice.is_reading or choice.is_finishing or choice.can_draw
    return choice.lane.remaining > 0 and is_wanted


def plan_rows(choice: Choice, budget: int) -> list[Row]:
    """The rows with which a choice uses up to `budget` tokens.

    The last token of every lane, the one that yields logits, waits for the step in which all lanes of the
    choice reach their end: one token is drawn from what they all give, and logits are kept for no later
    step. A choice that is only read has no such token. Where a reply is remembered anew, the last token waits
    for the step after.
    """
    if choice.is_reading:
        return list(_reading_row(choice, budget))
    rows = list(_rows_within(choice, budget))
    if sum(lane.remaining for lane in choice.lanes) > budget or any(row.output_positions for row in rows):
        return rows
    if choice.is_finishing:
        return [_full_row(choice, choice.lane, Purpose.REWARD)]
    return [_full_row(choice, lane, Purpose.DRAW) for lane in choice.lanes]


def _rows_within(choice: Choice, budget: int) -> Iterator[Row]:
    for lane in choice.lanes:
        num_tokens = min(lane.remaining - 1, budget)
        if num_tokens > 0:
            recalled = _recalled(choice, lane, num_tokens)
            yield Row(choice, lane, lane.num_computed, num_tokens, Purpose.PREFILL, recalled)
            budget -= num_tokens


def _recalled(choice: Choice, lane: Lane, num_tokens: int) -> tuple[int, ...]:
    """Offsets of the reply's states, the first of which its first token was drawn from."""
    if not choice.remembers or choice.is_finishing or lane is not choice.lane:
        return ()
    return tuple(range(max(choice.num_prompt_tokens - 1 - lane.num_computed, 0), num_tokens))


def _most_cached(choice: Choice) -> int | None:
    """How many leading tokens need not be computed; None for all but the last."""
    if choice.is_reading:
        return choice.read_at[0]
    return choice.num_prompt_tokens - 1 if choice.remembers and choice.num_drawn else None


def _reading_row(choice: Choice, budget: int) -> Iterator[Row]:
    lane, start = choice.lane, choice.lane.num_computed
    num_tokens = min(choice.read_at[-1] + 1 - start, budget)
    if num_tokens > 0:
        wanted = choice.read_at[bisect_left(choice.read_at, start) :]
        outputs = tuple(at - start for at in wanted if at < start + num_tokens)
        yield Row(choice, lane, start, num_tokens, Purpose.FEATURES, outputs)


def _full_row(choice: Choice, lane: Lane, purpose: Purpose) -> Row:
    return Row(choice, lane, lane.num_computed, lane.remaining, purpose, (lane.remaining - 1,))
