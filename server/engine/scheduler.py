"""Scheduler: continuous batching with chunked prefill, fair between tenants. No torch, no clock.

The scheduler decides from its queues alone, so that several ranks with the same queues decide alike.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import chain, zip_longest

from trimtab.server.engine.block_manager import BlockManager, ChainKey, OutOfBlocksError
from trimtab.server.engine.lane import Choice, Lane, Phase
from trimtab.server.engine.waiting_line import WaitingLine

SHORT_SHARE = 4  # see Scheduler


class Purpose(Enum):
    """What a row's hidden states are for."""

    PREFILL = "prefill"
    DRAW = "draw"
    REWARD = "reward"
    MEASURE = "measure"
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


@dataclass(slots=True)
class Counts:
    """What an engine's schedulers have done so far, one after the other. prefix_queries, prefix_hits: tokens
    of prompts that were looked up in the prefix cache, and found there."""

    prefix_queries: int = 0
    prefix_hits: int = 0
    num_preemptions: int = 0


class Scheduler:
    """running, waiting: in the order of arrival, a preempted choice before all of its tenant's that wait.

    Between tenants the next is the one for whom the fewest tokens were computed (see WaitingLine). Where it
    finds no room, the tenant with the most lanes gives way with its youngest choice, as long as it keeps no
    fewer than the other then has: a tenant with fewer lanes than others begins within two steps, whatever
    they hold and however many wait. Nobody's only choice gives way so. With one tenant this is first come,
    first served.

    A choice is *short* if one step could hold its prompt, and long otherwise. Of the tokens that decoding
    leaves, the long ones let a SHORT_SHARE-th to the short ones as long as any of these are behind them.
    So a short prompt whose slots and blocks are free begins at once, whatever long ones came before it, and
    draws after ⌈n / share⌉ steps, with n the tokens of the short prompts up to it. Within short and long
    of a tenant alike the first come is the first served.
    """

    def __init__(
        self,
        blocks: BlockManager,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        counts: Counts | None = None,
    ) -> None:
        """counts: those of the scheduler before, which are gone on with."""
        self.blocks = blocks
        self.counts = counts or Counts()
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

    @property
    def num_waiting(self) -> int:
        """Choices that wait for room, or for their leader's prompt."""
        waiting = list(self.waiting)
        return len(waiting) + sum(len(choice.followers) for choice in (*waiting, *list(self.running)))

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
        self._make_room(step)
        budget = self.max_num_batched_tokens
        for choice in self._in_order():
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
        if self.waiting.is_shared:
            self._charge(step)
        for row in step.rows:
            lane = row.lane
            lane.num_computed = row.start + row.num_tokens
            row.choice.count_run(lane, row.start, row.num_tokens)
            if row.purpose is Purpose.MEASURE:
                row.choice.is_measuring, row.choice.awaits = False, True
            if row.purpose is Purpose.DRAW:
                row.choice.count_run(lane, lane.num_computed, len(lane.scratch))
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
        choice.read_at = ()
        for companion in choice.lanes[1:]:
            self._release_lane(companion)
        choice.lanes = (lane,)
        lane.tokens[:] = tokens
        lane.num_inflight = 0
        self.blocks.truncate(lane, min(lane.num_computed, len(tokens) - 1))
        if not lane.blocks and choice.phase is Phase.RUNNING:
            self.blocks.match_prefix(lane)
        choice.is_finishing = True

    def end_lane(self, lane: Lane) -> None:
        """The reply in a pool's lane has ended. What is in flight was drawn past its end."""
        lane.is_over, lane.num_inflight = True, 0
        self.blocks.truncate(lane, min(lane.num_computed, len(lane.tokens) - 1))

    def close_lane(self, lane: Lane) -> None:
        """It has been measured, too."""
        lane.is_closed = True
        self.blocks.free(lane)

    def refork(self, choice: Choice, parents: Sequence[int], num_more: int) -> None:
        """Let each lane of a pool go on as its parent, which goes on as itself, for so many more tokens.
        Nothing is in flight; the last tokens, that were measured, are computed once more to be drawn from."""
        for lane, place in zip(choice.lanes, parents, strict=True):
            parent = choice.lanes[place]
            if parent is lane:
                continue
            self.blocks.free(lane)
            lane.tokens[:] = parent.tokens
            lane.is_over, lane.is_closed = parent.is_over, parent.is_closed
            self.blocks.fork(parent, lane, parent.num_computed)
        for lane in choice.open_lanes:
            self.blocks.truncate(lane, min(lane.num_computed, len(lane.tokens) - 1))
        choice.stand_still_after(num_more)
        choice.awaits = False

    def settle(self, choice: Choice, lanes: Sequence[Lane]) -> tuple[Choice, ...]:
        """These of a pool's lanes are replies: from now on each is a choice by itself, the first of them the
        one that was all."""
        for lane in choice.lanes:
            if lane not in lanes:
                self._release_lane(lane)
        if choice.phase is Phase.WAITING:
            self.waiting.remove(choice)
            self._forget_refusal(choice)
        others = choice.settle(lanes)
        if choice.phase is Phase.WAITING:
            self.waiting.put_first([choice, *others])
        else:
            self.running.update(dict.fromkeys(others))
        return choice, *others

    def finish(self, choice: Choice) -> None:
        """End a choice, wherever it is: its blocks and slots are free afterwards."""
        self._release(choice)
        if choice in self.running:
            del self.running[choice]
        elif choice in self.waiting:
            self.waiting.remove(choice)
        self._forget_refusal(choice)
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
        if self.waiting.is_shared:
            prefilling = self.waiting.in_turn(prefilling)
        for choice in prefilling:
            self.considered = choice
            limit = budget if choice.is_short else budget - spare
            if choice.phase is Phase.RUNNING and limit > 0 and _has_work(choice):
                num_tokens = self._schedule_running(step, choice, limit)
                budget -= num_tokens
                if choice.is_short:
                    spare = max(spare - num_tokens, 0)
        self._admit(step, budget, spare)

    def _spare(self, prefilling: list[Choice], budget: int) -> int:
        """Tokens that long prompts let to short ones in this step."""
        share, wanted = -(-budget // SHORT_SHARE), 0
        is_refused = self._refusal is not None and self._refusal.choice is self.waiting.first
        can_admit = self._free_slots and not is_refused
        for choice in chain(prefilling, self.waiting.short if can_admit else ()):
            if wanted >= share:
                return share
            if choice.is_short:
                wanted += sum(lane.remaining for lane in choice.lanes)
        return min(wanted, share)

    def _schedule_running(self, step: Step, choice: Choice, budget: int) -> int:
        while choice.phase is Phase.RUNNING:
            self._share_prompt(choice)
            rows = plan_rows(choice, budget)
            try:
                self._reserve(rows, step.copies)
            except OutOfBlocksError:
                self._preempt(step, self._victim(step))
                continue
            step.rows.extend(rows)
            return sum(row.num_tokens for row in rows)
        return 0

    def _in_order(self) -> Sequence[Choice]:
        """Running choices, the oldest of each tenant before all others."""
        if not self.waiting.is_shared:
            return tuple(self.running)
        oldest = self._oldest()
        return sorted(self.running, key=lambda choice: choice is not oldest[choice.tenant])

    def _oldest(self) -> dict[str, Choice]:
        """Running choices by tenant."""
        return {choice.tenant: choice for choice in reversed(self.running)}

    def _victim(self, step: Step) -> Choice:
        """The youngest running choice that this step has not scheduled, of the tenant with the most lanes; a
        tenant's oldest last, so that something of everybody's goes on."""
        scheduled = {id(row.choice) for row in step.rows}
        lanes, oldest = self._lanes_held(), self._oldest()
        left = [choice for choice in reversed(self.running) if id(choice) not in scheduled]
        return max(left, key=lambda each: (each is not oldest[each.tenant], lanes[each.tenant]))

    def _lanes_held(self) -> Counter[str]:
        """By tenant."""
        held: Counter[str] = Counter()
        for choice in self.running:
            held[choice.tenant] += len(choice.lanes)
        return held

    def _make_room(self, step: Step) -> None:
        """For the next choice, by a tenant that has more than its share."""
        first = self.waiting.first if self.waiting.is_shared else None
        while first is not None and self._lacks_room(first):
            victim = self._over_share(first)
            if victim is None:
                return
            self._preempt(step, victim)

    def _lacks_room(self, choice: Choice) -> bool:
        few_slots = len(choice.lanes) > len(self._free_slots)
        return few_slots or self._is_still_refused(choice, self.max_num_batched_tokens)

    def _over_share(self, choice: Choice) -> Choice | None:
        """The youngest of the tenant that holds the most, where that keeps no less without it than the
        choice's then has."""
        held = self._lanes_held()
        if not held:
            return None
        most = max(held, key=held.__getitem__)
        victim = next(each for each in reversed(self.running) if each.tenant == most)
        keeps, has = held[most] - len(victim.lanes), held[choice.tenant] + len(choice.lanes)
        return victim if most != choice.tenant and keeps >= has else None

    def _charge(self, step: Step) -> None:
        """Tenants with what was computed for them; those that began with it have been."""
        admitted = set(map(id, step.admitted))
        tokens: Counter[str] = Counter()
        for row in step.rows:
            if id(row.choice) not in admitted:
                tokens[row.choice.tenant] += row.num_tokens
        for tenant, num_tokens in tokens.items():
            self.waiting.charge(tenant, num_tokens)

    def _preempt(self, step: Step, choice: Choice) -> None:
        self._release(choice)
        del self.running[choice]
        self.waiting.put_first([choice])
        choice.phase = Phase.WAITING
        choice.num_preemptions += 1
        self.counts.num_preemptions += 1
        step.preempted.append(choice)

    def _release(self, choice: Choice) -> None:
        for lane in choice.lanes:
            self._release_lane(lane)

    def _release_lane(self, lane: Lane) -> None:
        self.blocks.free(lane)
        if lane.slot is not None:
            self._free_slots.append(lane.slot)
            lane.slot = None

    def _admit(self, step: Step, budget: int, spare: int) -> None:
        gave_way = {choice.tenant for choice in step.preempted}
        while (choice := self._next_waiting(budget, spare)) is not None:
            self.considered = choice
            limit = budget if choice.is_short else budget - spare
            is_due = choice.tenant not in gave_way and not choice.has_inflight
            if not is_due or len(choice.lanes) > len(self._free_slots):
                return
            rows = self._try_to_start(step, choice, limit)
            if rows is None:
                return
            step.rows.extend(rows)
            num_tokens = sum(row.num_tokens for row in rows)
            budget -= num_tokens
            self.waiting.charge(choice.tenant, num_tokens)
            if choice.is_short:
                spare = max(spare - num_tokens, 0)

    def _next_waiting(self, budget: int, spare: int) -> Choice | None:
        """The first that waits; but the first short one where no tokens are left for long ones."""
        first = self.waiting.first if budget > 0 else None
        if first is None or first.is_short or budget > spare:
            return first
        return self.waiting.first_short

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

    def _forget_refusal(self, choice: Choice) -> None:
        if self._refusal is not None and self._refusal.choice is choice:
            self._refusal = None

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
        parents = () if choice.leader is None else choice.leader.lanes
        for lane, parent in zip_longest(choice.open_lanes, parents[: len(choice.lanes)]):
            if choice.is_pool and lane is not choice.lane and lane.length == choice.num_prompt_tokens:
                continue  # see _share_prompt
            num_shared = choice.num_shared(lane)
            if parent is not None and parent.num_computed >= num_shared > 0:
                self.blocks.fork(parent, lane, num_shared)
            else:
                self.blocks.match_prefix(lane, _most_cached(choice, lane))
        if choice.num_preemptions == 0:
            choice.num_cached_tokens = choice.lane.num_computed
            if choice.leader is None:
                self.counts.prefix_queries += choice.num_prompt_tokens
                self.counts.prefix_hits += choice.num_cached_tokens

    def _share_prompt(self, choice: Choice) -> None:
        """Fork a pool's prompt into the lanes that have nothing yet, once the first one has computed it."""
        first, *others = choice.open_lanes if choice.is_pool else (choice.lane,)
        num_shared = choice.num_prompt_tokens - 1
        for lane in others:
            if not lane.blocks and first.num_computed >= num_shared > 0:
                self.blocks.fork(first, lane, num_shared)

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
    return all(lane.remaining <= most for lane in choice.open_lanes)


def _has_work(choice: Choice) -> bool:
    if choice.is_pool and choice.remembers and choice.has_inflight:
        return False  # what is drawn past an end would be remembered, and measured with the reply
    is_wanted = choice.is_reading or choice.is_finishing or choice.is_measuring or choice.can_draw
    return is_wanted and any(lane.remaining > 0 for lane in choice.open_lanes)


def plan_rows(choice: Choice, budget: int) -> list[Row]:
    """The rows with which a choice uses up to `budget` tokens.

    The last token of every lane, the one that yields logits, waits for the step in which all lanes of the
    choice reach their end: one token is drawn from what they all give, and logits are kept for no later
    step. A choice that is only read has no such token. Where a reply is remembered anew, the last token waits
    for the step after.
    """
    if choice.is_reading:
        return list(_reading_row(choice, budget))
    lanes, num_shared = choice.open_lanes, choice.num_prompt_tokens - 1
    if choice.is_pool and lanes[0].num_computed < num_shared:  # the others wait for its prompt
        num_tokens = min(num_shared - lanes[0].num_computed, budget)
        return [Row(choice, lanes[0], lanes[0].num_computed, num_tokens, Purpose.PREFILL)]
    rows = list(_rows_within(choice, budget))
    if sum(lane.remaining for lane in lanes) > budget or any(row.output_positions for row in rows):
        return rows
    if choice.is_finishing:
        return [_full_row(choice, choice.lane, Purpose.REWARD)]
    if choice.is_measuring:
        return [_full_row(choice, lane, Purpose.MEASURE) for lane in lanes]
    return [_full_row(choice, lane, Purpose.DRAW) for lane in lanes if not lane.is_over]


def _rows_within(choice: Choice, budget: int) -> Iterator[Row]:
    for lane in choice.open_lanes:
        num_tokens = min(lane.remaining - 1, budget)
        if num_tokens > 0:
            recalled = _recalled(choice, lane, num_tokens)
            yield Row(choice, lane, lane.num_computed, num_tokens, Purpose.PREFILL, recalled)
            budget -= num_tokens


def _recalled(choice: Choice, lane: Lane, num_tokens: int) -> tuple[int, ...]:
    """Offsets of the reply's states, the first of which its first token was drawn from."""
    if not choice.remembers or choice.is_finishing or lane.is_companion:
        return ()
    return tuple(range(max(choice.num_prompt_tokens - 1 - lane.num_computed, 0), num_tokens))


def _most_cached(choice: Choice, lane: Lane) -> int | None:
    """How many leading tokens need not be computed; None for all but the last."""
    if choice.is_reading:
        return choice.read_at[0]
    is_recalled = choice.remembers and lane.length > choice.num_prompt_tokens and not lane.is_companion
    return choice.num_prompt_tokens - 1 if is_recalled else None


def _reading_row(choice: Choice, budget: int) -> Iterator[Row]:
    lane, start = choice.lane, choice.lane.num_computed
    num_tokens = min(choice.read_at[-1] + 1 - start, budget)
    if num_tokens > 0:
        wanted = choice.read_at[bisect_left(choice.read_at, start) :]
        outputs = tuple(at - start for at in wanted if at < start + num_tokens)
        yield Row(choice, lane, start, num_tokens, Purpose.FEATURES, outputs)


def _full_row(choice: Choice, lane: Lane, purpose: Purpose) -> Row:
    return Row(choice, lane, lane.num_computed, lane.remaining, purpose, (lane.remaining - 1,))
