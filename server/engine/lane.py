"""Lanes and choices: what the scheduler moves. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from trimtab.server.engine.request import Request


@dataclass(slots=True, eq=False)
class Lane:
    """One sequence: its tokens and the cache blocks that hold their keys and values.

    num_computed: tokens whose keys and values are in the cache once all launched steps have run.
    chain: the prefix cache's uid of each leading full block of known tokens (see BlockManager).
    num_inflight: tokens drawn on the device by launched steps and not yet read back.
    num_synced_blocks: leading entries of `blocks` that the device's block table already holds.
    """

    tokens: list[int]
    blocks: list[int] = field(default_factory=list)
    num_computed: int = 0
    num_inflight: int = 0
    chain: list[int] = field(default_factory=list)
    num_synced_blocks: int = 0
    slot: int | None = None

    def start_over(self) -> None:
        """Forget the cache and the device; the tokens stay."""
        self.blocks, self.chain, self.slot = [], [], None
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
    receive the drawn token. All lanes of a choice draw in the same step or not at all.

    lane: the first of `lanes`. max_length: of it, with the longest reply. is_single: it is drawn from, and
    alone.
    leader: the choice whose prompt this one shares; it is forked from there when that still lives.
    is_finishing: the reply is complete; one more step feeds its last token to the reward parts.
    read_at: ascending positions of the lane whose h is asked for. With any, the lane holds the prompt and a
    whole reply, nothing is drawn, and the choice is over once the last of them is computed.
    remembers: a value of its heads remembers the reply: where that is computed again, its h is asked for.
    is_short: whether one step could hold what the choice has to compute before it draws (see Scheduler).
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
    lane: Lane = field(init=False)
    num_prompt_tokens: int = field(init=False)
    max_length: int = field(init=False)
    is_single: bool = field(init=False)
    awaits_draws: bool = field(init=False)

    def __post_init__(self) -> None:
        self.lane = self.lanes[0]
        self.num_prompt_tokens = len(self.request.prompt_token_ids)
        self.max_length = self.num_prompt_tokens + self.request.sampling.max_tokens
        self.is_single = len(self.lanes) == 1 and not self.read_at
        self.awaits_draws = self.request.grammar is not None

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

    @property
    def has_inflight(self) -> bool:
        return self.lane.num_inflight > 0

    @property
    def is_reading(self) -> bool:
        return bool(self.read_at)

    @property
    def can_draw(self) -> bool:
        is_due = not (self.awaits_draws and self.has_inflight)
        return not self.is_reading and self.lane.length < self.max_length and is_due
