"""Oracle: the tilt, its statistics and its draw in float64, from the same random integers as the kernels'."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.gpu.findings import Findings
from benchmarks.gpu.inputs import DrawKeys, Source
from benchmarks.gpu.machine import Machine
from trimtab.kernels.guided_logits import MIN_TEMPERATURE, GuidedDraw
from trimtab.kernels.philox import LARGEST_UNIFORM, random_words

NEAR_TIE = 1e-4
STATISTIC_ERROR = 1e-4
KL_ERROR, RELATIVE_KL_ERROR = 1e-5, 1e-4
OTHER_TOKENS = 1e-3  # of the draws may differ, all at near ties


@dataclass(frozen=True, slots=True)
class Exact:
    """base, guided: log-probabilities f64[B, V]; score f64[B, V]: the draw is its argmax. f64[B] the rest.

    is_base: bool[B], rows without a tilt.
    """

    base: Tensor
    guided: Tensor
    kl: Tensor
    soft_value: Tensor
    entropy: Tensor
    score: Tensor
    is_base: Tensor


def exact_noise(keys: DrawKeys, vocab_size: int) -> Tensor:
    """Gumbel noise f64[B, V] of the draw's purpose."""
    words = torch.stack(random_words(keys.seeds, keys.positions, keys.choices, vocab_size), 2)
    u = ((words.flatten(1)[:, :vocab_size].double() + 0.5) * 2.0**-32).clamp(max=LARGEST_UNIFORM)
    return -(-torch.log1p(-u)).log()


def measure_exactly(z: Tensor, advantage: Tensor | None, beta: Tensor | None, keys: DrawKeys) -> Exact:
    """z: f64[B, V]. advantage: f64[B, V] or None. beta: [B], 0 in rows without a tilt."""
    base = z.log_softmax(1)
    shift = torch.zeros_like(z)
    strength = z.new_zeros(len(z))
    if advantage is not None and beta is not None:
        strength = beta.double()
        mean = (base.exp() * advantage).sum(1, keepdim=True)
        shift = strength[:, None] * (advantage - mean)
    tilted = z + shift
    guided = tilted.log_softmax(1)
    log_mean = tilted.logsumexp(1) - z.logsumexp(1)
    heat = keys.temperature.double()[:, None]
    noise = exact_noise(keys, z.shape[1])
    return Exact(
        base,
        guided,
        (guided.exp() * shift).sum(1) - log_mean,
        torch.where(strength != 0, log_mean / strength, 0),
        torch.special.entr(base.exp()).sum(1),
        torch.where(heat > 0, tilted / heat.clamp(min=MIN_TEMPERATURE) + noise, tilted),
        (shift == 0).all(1),
    )


def require_exact(findings: Findings, name: str, draw: GuidedDraw, exact: Exact) -> None:
    """Hold every field of a draw against float64, within the errors that the design allows."""
    at = draw.token.clamp(min=0)[:, None]
    findings.require_none(f"{name}: rows without a token", draw.token < 0)
    best = exact.score.amax(1)
    missed = best - exact.score.gather(1, at)[:, 0]
    findings.require_none(f"{name}: other tokens, no near tie", missed > NEAR_TIE)
    allowed = max(1.0, OTHER_TOKENS * len(at))
    findings.require(f"{name}: other tokens", float((missed > 0).sum()), allowed)
    for field, expected in (
        ("logprob", exact.guided.gather(1, at)[:, 0]),
        ("base_logprob", exact.base.gather(1, at)[:, 0]),
        ("soft_value", exact.soft_value),
    ):
        findings.require(f"{name}: {field}", (getattr(draw, field) - expected).abs(), STATISTIC_ERROR)
    excess = (draw.kl - exact.kl).abs() - RELATIVE_KL_ERROR * exact.kl
    findings.require(f"{name}: KL error beyond {RELATIVE_KL_ERROR:g}·KL", excess, KL_ERROR)
    findings.require_none(f"{name}: negative KL", draw.kl < 0)
    findings.require_none(f"{name}: KL where the tilt is the base", (draw.kl != 0) & exact.is_base)
    if draw.entropy is not None:
        findings.require(f"{name}: entropy", (draw.entropy - exact.entropy).abs(), STATISTIC_ERROR)
    findings.require_none(f"{name}: wrong flips", _wrong_flips(draw.flip, exact))


def _wrong_flips(flip: Tensor, exact: Exact) -> Tensor:
    """Where neither the base's nor the tilt's two likeliest tokens nearly tie."""
    is_clear = torch.ones_like(flip)
    for logprobs in (exact.base, exact.guided):
        top = logprobs.topk(min(2, logprobs.shape[1])).values
        is_clear &= (top[:, 0] - top[:, -1] > NEAR_TIE) | (top.shape[1] == 1)
    return is_clear & (flip != (exact.base.argmax(1) != exact.guided.argmax(1)))


RunRows = Callable[[Tensor], dict[str, Tensor]]


def require_invariance(
    findings: Findings, name: str, machine: Machine, run: RunRows, num_rows: int, sizes: Iterable[int]
) -> None:
    """run: the fields, one entry per row, of the given rows i64[B] of a batch of `num_rows`.

    Triton's kernels promise it; the references' matrix products do not.
    """
    if machine.backend != "triton":
        return
    source = Source(machine.device)
    whole = run(torch.arange(num_rows, device=source.device))
    for size in sizes:
        if size <= num_rows:
            rows = source.permutation(num_rows)[:size]
            part = run(rows)
            differing = sum(not same_bits(part[field], whole[field][rows]) for field in whole)
            findings.require(f"{name}: fields that depend on batchmates", differing, 0)


def fields_of(draw: GuidedDraw) -> dict[str, Tensor]:
    found = {field.name: getattr(draw, field.name) for field in dataclasses.fields(draw)}
    return {name: value for name, value in found.items() if value is not None}


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit; NaN equals NaN."""
    if a.is_floating_point():
        a, b = a.nan_to_num(nan=1e30), b.nan_to_num(nan=1e30)
    return torch.equal(a, b)
