"""The reference of the draw that every path shares: Gumbel-max with noise keyed by the request."""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.kernels.philox import gumbel_noise

MIN_TEMPERATURE = 1e-6  # what lies above 0 and below is drawn from at this one: fp32 logits resolve no more


def keyed_draw(
    guided: Tensor,
    *,
    seeds: Tensor,
    positions: Tensor,
    choices: Tensor,
    temperature: Tensor,
    threshold: Tensor | None = None,
    any_greedy: bool = True,
) -> Tensor:
    """The argmax of `guided / temperature` plus noise, over tokens with `guided >= threshold`; i64[B].

    guided: f32[B, V]. seeds, positions, choices: i64[B], see `gumbel_noise`. temperature: f32[B], 0 is greedy
    with the lowest id on a tie. threshold: f32[B]. any_greedy: False promises that no row has temperature 0.
    """
    score = gumbel_noise(seeds, positions, choices, guided.shape[1])
    if any_greedy:
        greedy = temperature == 0
        score.masked_fill_(greedy[:, None], 0)
        temperature = temperature.masked_fill(greedy, 1)
    score.addcmul_(guided, temperature.clamp(min=MIN_TEMPERATURE).reciprocal()[:, None])
    if threshold is not None:
        score.masked_fill_(guided < threshold[:, None], -torch.inf)
    return score.argmax(1)
