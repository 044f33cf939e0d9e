"""Population: replies of one choice that grow side by side until one of them is picked. No torch here.

What all of them have in common is certain, and can be sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile

from trimtab.guidance.rules import PoolRule
from trimtab.guidance.rules.pool import Standing
from trimtab.server.engine.replies import Measured, Reply
from trimtab.server.engine.request import Delta, Guidance, Scores

Uniform = Callable[[int], float]
"""A number in (0, 1) for the n-th use of chance."""


@dataclass(slots=True)
class Particle:
    """deltas: of the reply, that have not been sent."""

    reply: Reply
    deltas: list[Delta] = field(default_factory=list)
    standing: Standing = field(default_factory=Standing)

    def fork(self) -> Particle:
        return Particle(self.reply.fork(), list(self.deltas), replace(self.standing))


class Population:
    """particles: by the index of their lane. awaited: of those whose value is on its way."""

    def __init__(self, reply: Reply, guidance: Guidance, uniform: Uniform) -> None:
        assert isinstance(guidance.rule, PoolRule)
        self._rule, self._uniform = guidance.rule, uniform
        self._weights = {name: guidance.strength * weight for name, weight in guidance.heads}
        self._figures: dict[str, float] = {}
        self._num_replies = reply.request.sampling.n
        self._num_uses = 0
        self.particles = [Particle(reply.fork()) for _ in range(self._rule.num_lanes)]
        self.awaited: set[int] = set()

    @property
    def is_over(self) -> bool:
        return all(particle.standing.is_over for particle in self.particles)

    def grow(self, index: int, token: Measured) -> bool:
        """Take a particle's next token. Whether it was the last one."""
        particle = self.particles[index]
        if particle.standing.start is None:
            particle.standing.start = particle.standing.score = self._score(token.value)
        particle.deltas.append(particle.reply.push(token))
        if self._rule.tilts:
            particle.standing.log_ratio += token.base_logprob - token.record.logprob
        particle.standing.is_over = particle.reply.finish_reason is not None
        return particle.standing.is_over

    def measure(self, index: int, values: Scores) -> None:
        """Take what a particle is worth as it stands still."""
        standing, score = self.particles[index].standing, self._score(values)
        standing.gain, standing.score = score - standing.score, score
        self.awaited.discard(index)

    def sift(self) -> list[int]:
        """Go on as the rule says: the places that were copied from, by place."""
        standings = [particle.standing for particle in self.particles]
        parents = self._rule.sift(standings, self._next_uniform(), self._figures)
        for standing in standings:
            standing.gain = standing.log_ratio = 0.0
        self.particles = [
            self.particles[parent] if parent == place else self.particles[parent].fork()
            for place, parent in enumerate(parents)
        ]
        return parents

    def pick(self) -> list[int]:
        """The places of the replies, once all are over; what the rule reports is noted in them."""
        standings = [particle.standing for particle in self.particles]
        picked = self._rule.pick(standings, self._num_replies, self._next_uniform(), self._figures)
        for index, (place, figures) in enumerate(picked.items()):
            reply = self.particles[place].reply
            reply.index, reply.figures = index, tuple(figures.items())
        return list(picked)

    def take_rest(self, places: Sequence[int]) -> list[Delta]:
        """Deltas of the replies in these places that have not been taken."""
        deltas = [self.particles[place].deltas for place in places]
        return [replace(delta, index=index) for index, own in enumerate(deltas) for delta in own]

    def take_common(self) -> list[Delta]:
        """Deltas that all particles begin with, which are not kept: of every reply."""
        together = zip(*(particle.deltas for particle in self.particles), strict=False)
        common = [same[0] for same in takewhile(lambda each: all(d is each[0] for d in each), together)]
        for particle in self.particles:
            del particle.deltas[: len(common)]
        return [replace(delta, index=index) for index in range(self._num_replies) for delta in common]

    def _score(self, values: Scores) -> float:
        return sum(self._weights[name] * value for name, value in values if self._weights[name])

    def _next_uniform(self) -> float:
        self._num_uses += 1
        return self._uniform(self._num_uses)
