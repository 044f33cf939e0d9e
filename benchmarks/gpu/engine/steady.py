"""Requests in steady decode: each step draws one token for every row."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from benchmarks.gpu.findings import Findings
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.request import ChoiceDone, Delta, Failed, Guidance, Request, SamplingParams

WARM_STEPS = 3
Spent = tuple[bool, float]


def reply_tokens(num_steps: int, num_rows: int, prompt: int, budget: int) -> int:
    """Of a reply that lasts until every row is prefilled and all have done so many steps together."""
    prefill_steps = -(-num_rows * prompt // max(budget - num_rows, 1)) + 1
    return num_steps + prefill_steps + 4 * WARM_STEPS


def require_guidance(findings: Findings, rows: Sequence[Spent]) -> None:
    """Guidance was at work where it was asked for, and only there: without it a reply spends exactly 0."""
    spent = [kl for is_guided, kl in rows if not is_guided]
    findings.require("KL of replies without guidance", max((abs(kl) for kl in spent), default=0.0), 0)
    idle = sum(not kl > 0 for is_guided, kl in rows if is_guided)
    findings.require("guided replies that spent no KL", idle, 0)


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

    def finish(self) -> list[Spent]:
        """Run to the end; returns for every reply whether guidance was asked for and the KL that it spent."""
        while self._engine.has_work:
            self._step()
        if self._engine.policy.device.type == "cuda":
            torch.cuda.synchronize()
        assert len(self._done) == len(self._guided)
        return [(self._guided[done.request_id], done.summary.kl) for done in self._done]

    def _step(self) -> None:
        for event in self._engine.step():
            assert not isinstance(event, Failed), event
            if isinstance(event, Delta):
                self._begun.add(event.request_id)
            elif isinstance(event, ChoiceDone):
                self._done.append(event)
