"""The frontier as data: strengths with what they bought and what they cost."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from trimtab.guidance.evaluation.reply import Heads
from trimtab.guidance.evaluation.statistics import Estimate


@dataclass(frozen=True, slots=True)
class ScoreSummary:
    """estimate: over the replies that the judge could score; None where there is none.
    unparsable: the share that it could not."""

    estimate: Estimate | None
    unparsable: float


@dataclass(frozen=True, slots=True)
class FrontierPoint:
    """One strength. kl: nats per reply. length: tokens per reply. stopped: share that ended by itself.
    distinct_1, distinct_2: different uni- and bigrams of tokens ÷ all."""

    strength: float
    num_replies: int
    scores: dict[str, ScoreSummary]
    kl: Estimate
    length: float
    stopped: float
    distinct_1: float
    distinct_2: float


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt with its reply at each strength of the report."""

    prompt: str
    replies: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FrontierReport:
    heads: Heads
    num_prompts: int
    points: tuple[FrontierPoint, ...]
    examples: tuple[Example, ...]

    @property
    def score_names(self) -> tuple[str, ...]:
        return tuple(self.points[0].scores)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

    def to_markdown(self) -> str:
        """A table with a row per strength; scores as mean [95 % interval]."""
        names = self.score_names
        header = ["strength", *names, "KL (nats)", "tokens", "distinct-2", "unparsable"]
        lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
        for point in self.points:
            worst = max((point.scores[name].unparsable for name in names), default=0.0)
            cells = [
                f"{point.strength:+g}" if point.strength else "0",
                *(_cell(point.scores[name].estimate) for name in names),
                _cell(point.kl),
                f"{point.length:.1f}",
                f"{point.distinct_2:.2f}",
                f"{worst:.1%}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join(lines) + "\n"


def _cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return "none"
    return f"{estimate.mean:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"
