"""That draws follow the distribution they are drawn from: a chi-square over the whole vocabulary."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.gpu.findings import Findings
from benchmarks.gpu.inputs import DrawKeys, Source
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.sizes import KernelSizes
from trimtab.kernels.guided_head import guided_head
from trimtab.kernels.guided_logits import guided_logits
from trimtab.kernels.truncate import truncate_and_draw

VOCAB_SIZE = 64
MAX_ROWS = 16384
MAX_CALLS = 1500
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


def check_draws_follow_the_tilt(machine: Machine, sizes: KernelSizes, findings: Findings) -> None:
    """From logits, fused with a tiny output embedding, and truncated."""
    source = Source(machine.device, seed=1)
    logits, advantage = source.normal(1, VOCAB_SIZE), source.normal(1, VOCAB_SIZE, scale=2)
    guided = logits + advantage

    def from_logits(keys: DrawKeys) -> Tensor:
        place = torch.zeros_like(keys.seeds)
        return guided_logits(
            logits.expand(len(place), -1), **keys.as_dict(), advantage=advantage, advantage_row=place,
            beta=torch.ones_like(keys.temperature), backend=machine.backend,
        ).token  # fmt: skip

    # One-hot h and inner parts: row 0 of the transposed weights is z, and of the head's A.
    h = torch.zeros(1, 16, device=machine.device)
    h[0, 0] = 1
    weight, up = torch.zeros(2, VOCAB_SIZE, 16, device=machine.device).unbind()
    weight[:, 0], up[:, 0] = logits[0], advantage[0]

    def fused(keys: DrawKeys) -> Tensor:
        rows = h.expand(len(keys.seeds), -1).contiguous()
        return guided_head(
            rows, weight, **keys.as_dict(), lowrank=(rows, up), beta=torch.ones_like(keys.temperature),
            backend=machine.backend,
        ).token  # fmt: skip

    cut = guided.sort(1).values[0, VOCAB_SIZE // 4]

    def truncated(keys: DrawKeys) -> Tensor:
        top_k = torch.full_like(keys.seeds, VOCAB_SIZE - VOCAB_SIZE // 4)
        rows = guided.expand(len(keys.seeds), -1).contiguous()
        return truncate_and_draw(rows, **keys.as_dict(), top_k=top_k, backend=machine.backend)

    scaled = guided.double()[0] / TEMPERATURE
    left = scaled.masked_fill(guided[0] < cut, -torch.inf)
    for name, draw, scores, most in (
        ("guided_logits", from_logits, scaled, MAX_ROWS),
        ("guided_head", fused, scaled, sizes.max_fused_rows),
        ("truncate_and_draw", truncated, left, MAX_ROWS),
    ):
        num_rows = min(most, sizes.num_draws)
        num_draws = min(sizes.num_draws, MAX_CALLS * num_rows)
        with findings.attempt(name):
            require_distribution(findings, name, scores.softmax(0), draw, num_draws, num_rows)
