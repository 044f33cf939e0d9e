"""Tilt: the policy's distribution times exp of strength times the heads' advantage. The rule by default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from trimtab.guidance.rules.base import Rule


@dataclass(frozen=True, slots=True)
class Tilt(Rule):
    """`π_β ∝ π₀ · exp(βA)`, with A the heads' advantages and β the strength: one pass, no token beside the
    reply's own. The kernels of `trimtab.kernels` are its formula."""

    kind: ClassVar[str] = "tilt"
