"""That draws follow the distribution they are drawn from: a chi-square over the whole vocabulary."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from trimtab.kernels.guided_logits import guided_logits
from trimtab.server.gpu.findings import Findings
from trimtab.server.gpu.inputs import DrawKeys, Source
from trimtab.server.gpu.machine import Machine
from trimtab.server.gpu.sizes import KernelSizes

VOCAB_SIZE = 64
MAX_ROWS = 16384
TEMPERATURE = 0.8


def require_distribution(
    findings: Findings,
    name: str,
    probabilities: Tensor,
    draw: Callable[[DrawKeys], Tensor],
    num_draws: int,
    num_rows: int,
) -> None:
    """draw: tokens i64[B] of B keys, drawn independently from `probabilities` f64[V]."""
    device = probabilities.device
    count = torch.zeros_like(probabilities)
    row = torch.arange(num_rows, device=device)
    for position in range(-(-num_draws // num_rows)):
        keys = DrawKeys(
            row,
            torch.full_like(row, position),
            torch.zeros_like(row),
            torch.full((num_rows,), TEMPERATURE, device=device),
        )
        count += torch.bincount(draw(keys), minlength=len(count))
    expected = count.sum() * probabilities
    is_possible = probabilities > 0
    findings.require(f"{name}: draws of impossible tokens", float(count[~is_possible].sum()), 0)
    spread = ((count - expected) ** 2 / expected)[is_possible].sum()
    freedom = int(is_possible.sum()) - 1
    findings.require(f"{name}: chi-square of {freedom}", spread, freedom + 10 * math.sqrt(2 * freedom))


def check_draws_follow_the_tilt(machine: Machine, sizes: KernelSizes) -> Findings:
    findings = Findings()
    source = Source(machine.device, seed=1)
    logits, advantage = source.normal(1, VOCAB_SIZE), source.normal(1, VOCAB_SIZE, scale=2)
    logits[:, 5] = -torch.inf

    def draw(keys: DrawKeys) -> Tensor:
        place = torch.zeros_like(keys.seeds)
        return guided_logits(
            logits.expand(len(place), -1), **keys.as_dict(), advantage=advantage, advantage_row=place,
            beta=torch.ones_like(keys.temperature), backend=machine.backend,
        ).token  # fmt: skip

    probabilities = ((logits + advantage).double()[0] / TEMPERATURE).softmax(0)
    num_rows = min(sizes.num_draws, MAX_ROWS)
    require_distribution(findings, "guided_logits", probabilities, draw, sizes.num_draws, num_rows)
    return findings
