"""Live request: everything about a request that has not had its terminal event. No torch here."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from trimtab.server.engine.forbidden import Forbidden
from trimtab.server.engine.lane import Choice, Lane, Phase
from trimtab.server.engine.population import Population
from trimtab.server.engine.rejection import Race
from trimtab.server.engine.replies import Reply
from trimtab.server.engine.request import Finished, Request, RequestTimes
from trimtab.server.engine.row_needs import RowNeeds
from trimtab.server.engine.scheduler import Row


@dataclass(slots=True, eq=False)
class LiveRequest:
    """population: of a rule with several sequences, until one of them is the reply. forbidden: where any
    tokens are."""

    request: Request
    choices: tuple[Choice, ...]
    replies: tuple[Reply, ...]
    needs: RowNeeds
    head_weights: list[float]
    seed: int
    race: Race | None = None
    population: Population | None = None
    forbidden: Forbidden | None = None
    arrived: float = field(default_factory=time.monotonic)
    taken_up: float | None = None
    first_token: float | None = None

    def mask(self, row: Row) -> np.ndarray:
        """i32[⌈V/32⌉], see `apply_token_mask`: what may be drawn behind a row of a request that has masks."""
        reply = self.reply_in(row.choice, row.lane)
        if reply.grammar is not None:
            return reply.grammar.mask()
        assert self.forbidden is not None
        return self.forbidden.mask(row.end - row.choice.num_prompt_tokens, reply.token_ids)

    def take_up(self) -> None:
        """It has begun to be computed."""
        self.taken_up = self.taken_up or time.monotonic()

    def note_token(self) -> None:
        """A token of it has been read."""
        self.first_token = self.first_token or time.monotonic()

    def reply_in(self, choice: Choice, lane: Lane) -> Reply:
        """What is drawn in that lane."""
        if self.population is not None:
            return self.population.particles[lane.index].reply
        return self.replies[choice.index]

    @property
    def is_done(self) -> bool:
        return all(choice.phase is Phase.DONE for choice in self.choices)

    def finished(self) -> Finished:
        given = self.request.given  # no completion: nothing of it was drawn
        drawn = () if given else self.replies
        return Finished(
            self.request.request_id,
            num_prompt_tokens=len(self.request.prompt_token_ids) + len(given),
            num_cached_tokens=self.choices[0].num_cached_tokens,
            num_completion_tokens=sum(len(reply.token_ids) for reply in drawn),
            num_computed_tokens=sum(choice.num_run_tokens for choice in self.choices),
            times=self._times(),
        )

    def _times(self) -> RequestTimes:
        now = time.monotonic()
        taken_up = self.taken_up or now
        first = self.first_token or now
        return RequestTimes(taken_up - self.arrived, first - taken_up, now - first)
