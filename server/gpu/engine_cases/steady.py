"""Requests in steady decode: each step draws one token for every row."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from trimtab.server.engine.engine import Engine
from trimtab.server.engine.request import ChoiceDone, Delta, Failed, Guidance, Request, SamplingParams

WARM_STEPS = 3


def reply_tokens(num_steps: int, num_rows: int, prompt: int, budget: int) -> int:
    """Of a reply that lasts until every row is prefilled and all have done so many steps together."""
    prefill_steps = -(-num_rows * prompt // max(budget - num_rows, 1)) + 1
    return num_steps + prefill_steps + 4 * WARM_STEPS


class SteadyDecode:
    """Prefills all prompts, then steps on demand; `finish` lets the replies end."""

    def __init__(
        self,
        engine: Engine,
        prompts: Sequence[tuple[int, ...]],
        guidance: Sequence[Guidance],
        max_tokens: int,
    ) -> None:
        self._engine = engine
        self._done: list[ChoiceDone] = []
        self._begun: set[str] = set()
        self._guided = {str(i): g.strength != 0 for i, g in enumerate(guidance)}
        for i, (prompt, given) in enumerate(zip(prompts, guidance, strict=True)):
            sampling = SamplingParams(max_tokens=max_tokens, seed=i, ignore_eos=True)
            engine.add(Request(str(i), prompt, sampling, given))
        while len(self._begun) < len(prompts):
            self._step()
        self.steps(WARM_STEPS)

    def steps(self, count: int) -> list[float]:
        """Seconds of each of so many steps."""
        seconds = []
        for _ in range(count):
            start = time.perf_counter()
            self._step()
            seconds.append(time.perf_counter() - start)
        assert not self._done, "a reply has ended: the steps were not all full"
        return seconds

    def finish(self) -> None:
        """Run to the end, and make sure that guidance was at work where it was asked for, and only there."""
        while self._engine.has_work:
            self._step()
        if self._engine.policy.device.type == "cuda":
            torch.cuda.synchronize()
        assert len(self._done) == len(self._guided)
        for done in self._done:
            assert (done.summary.kl > 0) == self._guided[done.request_id], "the rule ran where asked for"

    def _step(self) -> None:
        for event in self._engine.step():
            assert not isinstance(event, Failed), event
            if isinstance(event, Delta):
                self._begun.add(event.request_id)
            elif isinstance(event, ChoiceDone):
                self._done.append(event)
