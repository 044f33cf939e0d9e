"""The tilt's statistics and the keyed draw, from materialised logits (DESIGN.md §3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.kernels.dispatch import choose_backend
from trimtab.kernels.philox import gumbel_noise
from trimtab.kernels.truncate import truncation_threshold

NO_TOKEN = -1
MIN_TEMPERATURE = 1e-6  # what lies above 0 and below is drawn from at this one: fp32 logits resolve no more
WEAK_LIFT = 1e-4  # nats of E_β[βĀ], below which Λ is taken from it


@dataclass(frozen=True, slots=True)
class GuidedDraw:
    """One drawn token per row, with what was measured before temperature and truncation. Every field is [B].

    token: i64; −1 where the row holds a NaN or no finite logit. Its statistics are then NaN.
    logprob, base_logprob: of the token, under the tilt and under the base.
    kl: KL(tilt ‖ base) in nats, never negative.
    soft_value: Λ(β)/β in the advantage's units; 0, its limit, at β = 0.
    entropy: of the base in nats; None unless asked for.
    flip: bool; the base's likeliest token, lowest id on a tie, is not among the tilt's likeliest.
    lse_base, lse_guided: log Σ exp of z and of z + βĀ.
    """

    token: Tensor
    logprob: Tensor
    base_logprob: Tensor
    kl: Tensor
    soft_value: Tensor
    entropy: Tensor | None
    flip: Tensor
    lse_base: Tensor
    lse_guided: Tensor


@dataclass(frozen=True, slots=True)
class _Steered:
    """The rows that an advantage moves: their place in the batch, z, π₀, βĀ and z + βĀ."""

    rows: Tensor  # i64[R]
    base_logits: Tensor  # [R, V], as are the next three
    base: Tensor
    shift: Tensor
    logits: Tensor
    beta: Tensor  # [R]


def _steer(
    logits: Tensor,
    base: Tensor,
    advantage: Tensor | None,
    advantage_row: Tensor | None,
    beta: Tensor | None,
) -> _Steered | None:
    if advantage is None:
        return None
    assert advantage_row is not None and beta is not None, "an advantage comes with its rows and strengths"
    rows = ((advantage_row >= 0) & (beta != 0)).nonzero()[:, 0]
    if not len(rows):
        return None
    if len(rows) < len(logits):
        logits, base = logits.index_select(0, rows), base.index_select(0, rows)
    beta = beta[rows]
    shift = advantage.index_select(0, advantage_row[rows])
    shift -= shift[:, :1].clone()  # so that a common offset of A does not cost the mean its precision
    shift -= _mean(base, shift)[:, None]
    shift *= beta[:, None]
    return _Steered(rows, logits, base, shift, logits + shift, beta)


def _mean(probabilities: Tensor, values: Tensor) -> Tensor:
    return (probabilities * values).sum(1)


def _log_normaliser(logits: Tensor, probabilities: Tensor) -> Tensor:
    """log Σ exp [R] in float64, from the softmax of the logits."""
    return logits.amax(1).double() - probabilities.amax(1).double().log()


def _draw(
    logits: Tensor,
    threshold: Tensor | None,
    seeds: Tensor,
    positions: Tensor,
    choices: Tensor,
    temperature: Tensor,
    any_greedy: bool,
    any_sampled: bool,
) -> Tensor:
    if not any_sampled:
        return logits.argmax(1)
    score = gumbel_noise(seeds, positions, choices, logits.shape[1])
    if any_greedy:
        greedy = temperature == 0
        score.masked_fill_(greedy[:, None], 0)
        temperature = temperature.masked_fill(greedy, 1)
    score.addcmul_(logits, temperature.clamp(min=MIN_TEMPERATURE).reciprocal()[:, None])
    if threshold is not None:
        score.masked_fill_(logits < threshold[:, None], -torch.inf)
    return score.argmax(1)


def _reference(
    logits: Tensor,
    seeds: Tensor,
    positions: Tensor,
    choices: Tensor,
    temperature: Tensor,
    advantage: Tensor | None,
    advantage_row: Tensor | None,
    beta: Tensor | None,
    min_p: Tensor | None,
    top_k: Tensor | None,
    top_p: Tensor | None,
    want_entropy: bool,
    any_greedy: bool,
    any_sampled: bool,
) -> GuidedDraw:
    base = logits.softmax(1)
    lse_base = _log_normaliser(logits, base)
    kl, soft_value = torch.zeros_like(temperature), torch.zeros_like(temperature)
    flip = torch.zeros_like(temperature, dtype=torch.bool)

    guided, lse_guided = logits, lse_base
    steered = _steer(logits, base, advantage, advantage_row, beta)
    if steered is not None:
        rows = steered.rows
        guided = steered.logits if len(rows) == len(logits) else logits.index_copy(0, rows, steered.logits)
        tilt = steered.logits.softmax(1)
        lse = _log_normaliser(steered.logits, tilt)
        lse_guided = lse_base.index_copy(0, rows, lse)
        lift = _mean(tilt, steered.shift).double()  # E_β[βĀ]
        log_mean = lse - lse_base[rows]  # Λ
        kl[rows] = (lift - log_mean).clamp_(min=0).float()
        # A weak tilt's Λ drowns in the rounding of two normalisers; to second order it is half the lift.
        soft_value[rows] = (torch.where(lift < WEAK_LIFT, lift / 2, log_mean) / steered.beta).float()
        favourite = steered.base_logits.argmax(1, keepdim=True)
        flip[rows] = steered.logits.gather(1, favourite)[:, 0] < steered.logits.amax(1)

    threshold = None
    if min_p is not None or top_k is not None or top_p is not None:
        threshold = truncation_threshold(guided, temperature, min_p, top_k, top_p)
    token = _draw(guided, threshold, seeds, positions, choices, temperature, any_greedy, any_sampled)

    broken = ~lse_guided.isfinite()
    logprob = (guided.gather(1, token[:, None])[:, 0] - lse_guided).float()
    base_logprob = logprob
    if steered is not None:
        base_logprob = (logits.gather(1, token[:, None])[:, 0] - lse_base).float()
    entropy = None
    if want_entropy:
        surprise = (lse_base.float()[:, None] - logits).clamp_(max=torch.finfo(torch.float32).max)
        entropy = _mean(base, surprise)
    return GuidedDraw(
        token.masked_fill_(broken, NO_TOKEN),
        logprob.masked_fill(broken, torch.nan),
        base_logprob.masked_fill(broken, torch.nan),
        kl.masked_fill_(broken, torch.nan),
        soft_value.masked_fill_(broken, torch.nan),
        entropy,
        flip,
        lse_base.float(),
        lse_guided.float(),
    )


def guided_logits(
    logits: Tensor,
    *,
    seeds: Tensor,
    positions: Tensor,
    choices: Tensor,
    temperature: Tensor,
    advantage: Tensor | None = None,
    advantage_row: Tensor | None = None,
    beta: Tensor | None = None,
    min_p: Tensor | None = None,
    top_k: Tensor | None = None,
    top_p: Tensor | None = None,
    want_entropy: bool = False,
    any_greedy: bool = True,
    any_sampled: bool = True,
    backend: str | None = None,
) -> GuidedDraw:
    """Draw one token per row from the tilt of the base and measure the tilt.

    The draw is the argmax over allowed tokens of `(z + βĀ)/temperature` plus Gumbel noise keyed by seed,
    position and choice (see philox.py); the greedy draw is the argmax of `z + βĀ`, lowest id on a tie. A row
    without an advantage or with β = 0 is bitwise what it is in a batch where no row has one.

    Args:
        logits: f32[B, V], z of the base; −inf marks a masked token.
        seeds, positions, choices: i64[B].
        temperature: f32[B], 0 is greedy.
        advantage: f32[G, V], finite; an offset per row changes nothing.
        advantage_row: i64[B], each row's place in `advantage`, −1 for none.
        beta: f32[B].
        min_p, top_k, top_p: [B], see `truncation_threshold`; None where no row asks for it.
        want_entropy: also measure the base's entropy.
        any_greedy, any_sampled: False promises that no row has temperature 0, or a higher one.
        backend: see `choose_backend`.
    """
    run = _BACKENDS[choose_backend(logits.device, backend)]
    return run(
        logits,
        seeds,
        positions,
        choices,
        temperature,
        advantage,
        advantage_row,
        beta,
        min_p,
        top_k,
        top_p,
        want_entropy,
        any_greedy,
        any_sampled,
    )


def tilted_logits(logits: Tensor, advantage: Tensor, advantage_row: Tensor, beta: Tensor) -> Tensor:
    """`z + βĀ` with Ā centred under the base [R, V]; −inf stays −inf, rows without a tilt stay as they are.

    logits: f32[R, V]. advantage: f32[G, V]. advantage_row: i64[R], −1 for none. beta: f32[R].
    """
    steered = _steer(logits, logits.softmax(1), advantage, advantage_row, beta)
    return logits if steered is None else logits.index_copy(0, steered.rows, steered.logits)


_BACKENDS = {"reference": _reference}
