"""Lanes and choices: what the scheduler moves. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from trimtab.guidance.rules import PoolRule
from trimtab.server.engine.request import Request

Root = int | tuple[int, str]


@dataclass(slots=True, eq=False)
class Lane:
    """One sequence: its tokens and the cache blocks that hold their keys and values.

    num_computed: tokens whose keys and values are in the cache once all launched steps have run.
    chain: the prefix cache's uid of each leading full block of known tokens (see BlockManager).
    num_inflight: tokens drawn on the device by launched steps and not yet read back.
    num_synced_blocks: leading entries of `blocks` that the device's block table already holds.
    is_companion: it gives logits to the choice's first lane, and receives what is drawn there.
    num_probes: tokens that are tried before each draw. scratch: as many blocks for their keys and values,
    from the lane's admission on.
    root: the further models that run over its tokens, as a number: 0 for none, else below; and its request's
    salt, if any. Its blocks hold their keys and values, too, and are found by lanes of the same root alone
    (see Experts).
    index: which of a pool's lanes it is. is_over: of a pool's, its reply has ended; is_closed: that has been
    measured as well, and nothing is left to compute.
    """

    tokens: list[int]
    blocks: list[int] = field(default_factory=list)
    num_computed: int = 0
    num_inflight: int = 0
    chain: list[int] = field(default_factory=list)
    num_synced_blocks: int = 0
    slot: int | None = None
    is_companion: bool = False
    num_probes: int = 0
    scratch: list[int] = field(default_factory=list)
    root: Root = 0
    index: int = 0
    is_over: bool = False
    is_closed: bool = False

    def start_over(self) -> None:
        """Forget the cache and the device; the tokens stay."""
        self.blocks, self.chain, self.scratch, self.slot = [], [], [], None
        self.num_computed = self.num_synced_blocks = 0

    @property
    def length(self) -> int:
        return len(self.tokens) + self.num_inflight

    @property
    def remaining(self) -> int:
        return self.length - self.num_computed


class Phase(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"


@dataclass(slots=True, eq=False)
class Choice:
    """One reply of a request. `lanes[0]` is drawn from; the others are companions, which give logits and
    receive the drawn token; or all are those of a pool, of which one will be the reply. All lanes of a choice
    draw in the same step or not at all.

    lane: the first of `lanes`. max_length: of it, with the longest reply. is_single: it is drawn from, and
    alone.
    leader: the choice whose prompt this one shares; it is forked from there when that still lives.
    is_finishing: the reply is complete; one more step feeds its last token to the reward parts.
    read_at: ascending positions of the lane whose h is asked for. With any, the lane holds the prompt and a
    whole reply, nothing is drawn, and the choice is over once the last of them is computed.
    remembers: a value of its heads remembers the reply: where that is computed again, its h is asked for.
    is_short: whether one step could hold what the choice has to compute before it draws (see Scheduler).
    num_models: those that each token is run through. num_run_tokens: what they were run on for it so far.
    num_run_for_reply: of these, from the last of the prompt on, which the first token is drawn behind:
    without companions, experts, probes and forks one for each token.
    is_pool: each lane draws tokens of its own, all up to max_length, and there stands still. is_measuring:
    their last tokens are to be read for their values; awaits: they are being read.
    awaits_draws: what its next token may be depends on the last one, so that none is drawn while the host
    waits for another.
    """

    request: Request
    index: int
    lanes: tuple[Lane, ...]
    leader: Choice | None = None
    followers: list[Choice] = field(default_factory=list)
    is_finishing: bool = False
    read_at: Sequence[int] = ()
    remembers: bool = False
    phase: Phase = Phase.WAITING
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    is_short: bool = True
    num_run_tokens: int = 0
    num_run_for_reply: int = 0
    tenant: str = field(init=False)
    is_pool: bool = field(init=False)
    is_measuring: bool = False
    awaits: bool = False
    lane: Lane = field(init=False)
    num_prompt_tokens: int = field(init=False)
    max_length: int = field(init=False)
    num_models: int = field(init=False)
    is_single: bool = field(init=False)
    awaits_draws: bool = field(init=False)

    def __post_init__(self) -> None:
        self.lane, self.tenant = self.lanes[0], self.request.tenant
        self.num_prompt_tokens = len(self.request.prompt_token_ids)
        self.max_length = self.num_prompt_tokens + self.request.sampling.max_tokens
        rule = self.request.guidance.rule
        self.is_pool, self.num_models = rule.is_pool, 1 + len(rule.experts)
        if isinstance(rule, PoolRule):
            self.max_length = self.num_prompt_tokens
            self.stand_still_after(rule.block)
        self.is_single = len(self.lanes) == 1 and not self.read_at
        self.awaits_draws = self.request.grammar is not None or bool(self.request.sampling.bad_words)

    def start_over(self) -> None:
        """Wait to be computed from the first token, as after a preemption."""
        for lane in self.lanes:
            lane.start_over()
        self.num_preemptions += self.phase is Phase.RUNNING
        self.phase = Phase.WAITING

    @property
    def num_drawn(self) -> int:
        """Tokens drawn so far, those still on the device included."""
        return self.lane.length - self.num_prompt_tokens

    def num_shared(self, lane: Lane) -> int:
        """Leading tokens of one of its lanes that the leader's has as well, and can be forked with."""
        extra = len(lane.tokens) - len(self.lane.tokens) if lane.is_companion else 0
        return self.num_prompt_tokens - 1 + extra

    def count_run(self, lane: Lane, start: int, num_tokens: int) -> None:
        """The models are run on so many tokens of a lane, from this position on."""
        self.num_run_tokens += num_tokens * self.num_models
        of_prompt = (
            0 if start > self.num_prompt_tokens and lane is self.lane else self.num_shared(lane) - start
        )
        self.num_run_for_reply += (num_tokens - min(max(of_prompt, 0), num_tokens)) * self.num_models

    def settle(self, lanes: Sequence[Lane]) -> list[Choice]:
        """Of a pool, go on as the first of these lanes alone. A choice for each of the others."""
        first, *others = lanes
        choices = [
            Choice(self.request, index, (lane,), remembers=self.remembers, phase=self.phase)
            for index, lane in enumerate(others, 1)
        ]
        self.lane, self.lanes, self.awaits = first, (first,), False
        for choice in (self, *choices):
            choice.is_pool = choice.lane.is_over = choice.lane.is_closed = False
        return choices

    def stand_still_after(self, num_tokens: int) -> None:
        """A pool's lanes draw so many more tokens, at most to the reply's limit."""
        longest = self.num_prompt_tokens + self.request.sampling.max_tokens
        self.max_length = min(self.max_length + num_tokens, longest)

    @property
    def open_lanes(self) -> Sequence[Lane]:
        """All but those with which nothing is left to do."""
        return [lane for lane in self.lanes if not lane.is_closed] if self.is_pool else self.lanes

    @property
    def has_inflight(self) -> bool:
        return self.awaits or any(lane.num_inflight > 0 for lane in self.lanes)

    @property
    def is_reading(self) -> bool:
        return bool(self.read_at)

    @property
    def can_draw(self) -> bool:
        if self.is_reading or (self.awaits_draws and self.has_inflight):
            return False
        lanes = self.lanes if self.is_pool else (self.lane,)
        return any(not lane.is_over and lane.length < self.max_length for lane in lanes)
