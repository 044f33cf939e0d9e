"""Logit bias and penalties on the device against the same on the host."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from trimtab.kernels.penalties import apply_penalties
from trimtab.server.gpu.findings import Findings
from trimtab.server.gpu.inputs import LOGIT_SCALE, Source
from trimtab.server.gpu.machine import Machine
from trimtab.server.gpu.sizes import KernelSizes

HISTORY = 200
ERROR = 1e-5


def check_penalties(machine: Machine, sizes: KernelSizes, findings: Findings) -> None:
    for _, vocab in sizes.head_shapes:
        source, num_rows = Source(machine.device, seed=vocab), max(sizes.check_rows)
        logits = source.normal(num_rows, vocab, scale=LOGIT_SCALE)
        lengths = source.integers(0, HISTORY + 1, num_rows - 1)
        history: dict[str, Any] = {
            "rows": source.permutation(num_rows)[: num_rows - 1],
            "tokens": source.integers(0, min(vocab, 50), num_rows - 1, HISTORY),
            "prompt_lengths": lengths // 2,
            "lengths": lengths,
            "repetition": source.cycle((1.0, 1.3, 0.8), num_rows - 1),
            "presence": source.cycle((0.0, 0.5, -1.0), num_rows - 1),
            "frequency": source.cycle((0.2, 0.0), num_rows - 1),
        }
        none: list[tuple[tuple[int, float], ...]] = [()] * (num_rows - 1)
        biases = [((row % vocab, 2.0), ((row + 7) % vocab, -100.0)) for row in range(num_rows - 1)]
        expected, found = logits.cpu(), logits.clone()
        apply_penalties(expected, **_on_host(history), logit_bias=biases)
        apply_penalties(found, **history, logit_bias=biases)
        findings.require("penalised logits", (found.cpu() - expected).abs(), ERROR)
        with machine.host_waits() as waits:
            apply_penalties(found, **history, logit_bias=none)
        findings.require_no_waits("host waits of a call without a bias", waits)


def _on_host(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value.cpu() if isinstance(value, Tensor) else value for name, value in values.items()}
