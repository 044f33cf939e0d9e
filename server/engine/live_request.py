"""Live request: everything about a request that has not had its terminal event. No torch here."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from trimtab.server.engine.lane import Choice, Lane, Phase
from trimtab.server.engine.population import Population
from trimtab.server.engine.rejection import Race
from trimtab.server.engine.replies import Reply
from trimtab.server.engine.request import Finished, Request, RequestTimes
from trimtab.server.engine.row_needs import RowNeeds


@dataclass(slots=True, eq=False)
class LiveRequest:
    """population: of a rule with several sequences, until one of them is the reply."""

    request: Request
    choices: tuple[Choice, ...]
    replies: tuple[Reply, ...]
    needs: RowNeeds
    head_weights: list[float]
    seed: int
    race: Race | None = None
    population: Population | None = None
    arrived: float = field(default_factory=time.monotonic)
    taken_up: float | None = None
    first_token: float | None = None

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
        return Finished(
            self.request.request_id,
            num_prompt_tokens=len(self.request.prompt_token_ids),
            num_cached_tokens=self.choices[0].num_cached_tokens,
            num_completion_tokens=sum(len(reply.token_ids) for reply in self.replies),
            num_computed_tokens=sum(choice.num_run_tokens for choice in self.choices),
            times=self._times(),
        )

    def _times(self) -> RequestTimes:
        now = time.monotonic()
        taken_up = self.taken_up or now
        first = self.first_token or now
        return RequestTimes(taken_up - self.arrived, first - taken_up, now - first)
