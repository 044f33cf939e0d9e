"""Where in a reply its value is decided."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def value_variance_after(values: Sequence[Sequence[float]], t: int = 5) -> float:
    """The share of the variance of V over replies that arises after token t: 1 − Var V(s_t) / Var V(s_{T−1}).

    A perfect forecast is a martingale, so its variance only grows along a reply, and this is in [0, 1].

    values: per reply V(s_0) … V(s_{T−1}); of replies that end before token t, V(s_{T−1}) counts as both.

    Raises:
        ValueError: fewer than two replies, or all end at the same value.
    """
    last = np.array([reply[-1] for reply in values], dtype=np.float64)
    if len(last) < 2 or last.var() == 0:
        raise ValueError("the share of a variance needs replies that end at different values")
    early = np.array([reply[min(t, len(reply) - 1)] for reply in values], dtype=np.float64)
    return float(1 - early.var() / last.var())
