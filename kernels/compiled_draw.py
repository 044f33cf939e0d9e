"""`guided_logits` on a CPU as one graph that TorchInductor compiles: a row is read a few times, not thirty.

The arithmetic of philox.py and guided_logits.py once more, written for a compiler: nothing in place, no row
picked out.
"""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from trimtab.kernels.dispatch import MIN_SIZE, compile_unguarded, compiler_settings
from trimtab.kernels.guided_logits import guided_logits
from trimtab.kernels.philox import (
    DRAW,
    LARGEST_UNIFORM,
    MASK,
    MIN_TEMPERATURE,
    MULTIPLIER_0,
    MULTIPLIER_1,
    NUM_ROUNDS,
    WEYL_0,
    WEYL_1,
)
from trimtab.kernels.tile_reduce import NO_TOKEN, WEAK_LIFT, GuidedDraw
from trimtab.kernels.truncate import Cuts, truncation_threshold

TYPICAL_ROWS, TYPICAL_GUIDED_ROWS = 32, 29  # what loops are laid out for; if equal, taken for one


def _noise(seeds: Tensor, positions: Tensor, choices: Tensor, num_tokens: int) -> Tensor:
    word_0 = torch.arange(-(-num_tokens // 4))[None]
    word_1, word_2 = (positions & MASK)[:, None], (choices & MASK)[:, None]
    word_3 = torch.full_like(word_1, DRAW)
    key_0, key_1 = (seeds & MASK)[:, None], ((seeds >> 32) & MASK)[:, None]
    for _ in range(NUM_ROUNDS):
        product_0, product_1 = word_0 * MULTIPLIER_0, word_2 * MULTIPLIER_1
        word_0 = ((product_1 >> 32) ^ word_1 ^ key_0) & MASK
        word_2 = ((product_0 >> 32) ^ word_3 ^ key_1) & MASK
        word_1, word_3 = product_1 & MASK, product_0 & MASK
        key_0, key_1 = (key_0 + WEYL_0) & MASK, (key_1 + WEYL_1) & MASK
    words = torch.stack([word.float() for word in (word_0, word_1, word_2, word_3)], -1)
    uniform = (words.flatten(1)[:, :num_tokens] * 2.0**-32 + 2.0**-33).clamp(max=LARGEST_UNIFORM)
    return -torch.log(-torch.log1p(-uniform))


def _draw(
    z: Tensor,
    seeds: Tensor,
    positions: Tensor,
    choices: Tensor,
    temperature: Tensor,
    threshold: Tensor,
    advantage: Tensor | None,
    advantage_row: Tensor | None,
    beta: Tensor | None,
) -> tuple[Tensor, ...]:
    """The fields of GuidedDraw, in order."""
    base_top = z.amax(1)
    below = z - base_top[:, None]
    weight = below.exp()
    base_total = weight.sum(1)
    base_log_total = base_total.log()
    smallest = torch.finfo(torch.float32).min  # 0 · −inf would be NaN
    entropy = base_log_total - (weight * below.clamp(min=smallest)).sum(1) / base_total
    guided, top, log_total = z, base_top, base_log_total
    kl = soft_value = torch.zeros_like(base_top)
    flip = torch.zeros_like(base_top, dtype=torch.bool)
    if advantage is not None:
        assert advantage_row is not None
        assert beta is not None
        source = advantage_row.clamp(min=0)
        values = advantage[source] - advantage[source, :1]
        mean = (weight * values).sum(1) / base_total
        strength = torch.where(advantage_row >= 0, beta, 0.0)
        is_tilted = strength != 0
        shift = torch.where(is_tilted[:, None], (values - mean[:, None]) * strength[:, None], 0.0)
        guided = torch.where(is_tilted[:, None], z + shift, z)
        top = guided.amax(1)
        tilted_weight = (guided - top[:, None]).exp()
        total = tilted_weight.sum(1)
        log_total = torch.where(is_tilted, total.log(), base_log_total)
        lift = (tilted_weight * shift).sum(1) / total  # E_β[βĀ]
        log_mean = (top - base_top) + (total / base_total).log()  # Λ
        kl = torch.where(is_tilted, (lift - log_mean).clamp(min=0), 0.0)
        divisor = torch.where(is_tilted, strength, 1.0)
        soft_value = torch.where(is_tilted, torch.where(lift < WEAK_LIFT, lift / 2, log_mean) / divisor, 0.0)
        flip = is_tilted & (guided.gather(1, z.argmax(1, keepdim=True))[:, 0] < top)
    noise = _noise(seeds, positions, choices, z.shape[1])
    heat = temperature.clamp(min=MIN_TEMPERATURE).reciprocal()[:, None]
    score = torch.where((temperature == 0)[:, None], guided, guided * heat + noise)
    score = torch.where(guided < threshold[:, None], -torch.inf, score)
    token = score.argmax(1)
    logprob = guided.gather(1, token[:, None])[:, 0] - top - log_total
    base_logprob = z.gather(1, token[:, None])[:, 0] - base_top - base_log_total
    whole = log_total.isfinite()

    def of_whole(values: Tensor) -> Tensor:
        return torch.where(whole, values, torch.nan)

    return (
        torch.where(whole, token, NO_TOKEN),
        of_whole(logprob),
        of_whole(base_logprob),
        of_whole(kl),
        of_whole(soft_value),
        entropy,
        flip,
        base_top + base_log_total,
        top + log_total,
    )


class CompiledDraw:
    """`guided_logits` for one vocabulary size, compiled when made.

    Raises RuntimeError where there is no C++ compiler.
    """

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._plain, self._guided = compile_unguarded(_draw), compile_unguarded(_draw)
        rows = TYPICAL_ROWS
        logits, advantage = torch.zeros(rows, vocab_size), torch.zeros(TYPICAL_GUIDED_ROWS, vocab_size)
        seeds, positions, choices, advantage_row = (torch.zeros(rows, dtype=torch.long) for _ in range(4))
        temperature, threshold, beta = (torch.ones(rows) for _ in range(3))
        inputs = (logits, seeds, positions, choices, temperature, threshold, advantage, advantage_row, beta)
        for tensor in inputs:
            torch._dynamo.mark_dynamic(tensor, 0)
        with compiler_settings():
            self._plain(*inputs[:6], None, None, None)
            self._guided(*inputs)

    def __call__(
        self,
        logits: Tensor,
        *,
        seeds: Tensor,
        positions: Tensor,
        choices: Tensor,
        temperature: Tensor,
        advantage: Tensor | None = None,
        advantage_row: Tensor | None = None,
        beta: Tensor | None = None,
        want_entropy: bool = False,
        any_greedy: bool = True,
        any_sampled: bool = True,
        **cuts: Unpack[Cuts],
    ) -> GuidedDraw:
        """See `guided_logits`."""
        truncates = any_sampled and any(cut is not None for cut in cuts.values())
        # A batch of greedy rows needs no noise; a threshold of tilted logits holds for its own roundings.
        if not any_sampled or (truncates and advantage is not None):
            return guided_logits(
                logits,
                seeds=seeds,
                positions=positions,
                choices=choices,
                temperature=temperature,
                advantage=advantage,
                advantage_row=advantage_row,
                beta=beta,
                want_entropy=want_entropy,
                any_greedy=any_greedy,
                any_sampled=any_sampled,
                **cuts,
            )
        if truncates:
            threshold = truncation_threshold(logits, temperature, **cuts)
        else:
            threshold = torch.full_like(temperature, -torch.inf)
        rows = (logits, seeds, positions, choices, temperature, threshold, advantage, advantage_row, beta)
        assert logits.shape[1] == self._vocab_size
        run = self._plain if advantage is None else self._guided
        fields = run(*(_at_least_two(values) for values in rows))
        return GuidedDraw(*(field[: len(logits)] for field in fields))


def _at_least_two(rows: Tensor | None) -> Tensor | None:
    return rows if rows is None or len(rows) >= MIN_SIZE else torch.cat([rows, rows])
