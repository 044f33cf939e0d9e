"""Where in a reply its value is decided."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def share_decided_later(first: Sequence[float], second: Sequence[float]) -> float:
    """The share of the variance of V that arises after a point of the reply: 1 − Var E[r | start] / Var r.

    V(s) = E[r | s] is a martingale along a reply, so its variance only grows and ends at Var r. Two replies
    that were continued independently from the same start share E[r | start] and nothing else, so the
    covariance of their rewards estimates its variance without a value part that would have to be right.

    first, second: the rewards of the two continuations, one pair per start.

    Raises:
        ValueError: fewer than two pairs, pairs that do not match, or rewards without any variance.
    """
    rewards = np.array([first, second], dtype=np.float64)  # [2, N]
    if rewards.shape[1] < 2 or rewards.var() == 0:
        raise ValueError("the share of a variance needs two pairs of rewards or more, not all of them equal")
    centred = rewards - rewards.mean()
    return float(1 - (centred[0] * centred[1]).mean() / rewards.var())
