"""Report of an evaluation: everything that it found, as data, report.json."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any

from trimtab.guidance.evaluation.baselines.activation_steering import SteeringTrial
from trimtab.guidance.evaluation.baselines.static_bias import BiasTrial
from trimtab.guidance.evaluation.baselines.system_prompt import WordingTrial
from trimtab.guidance.evaluation.compare import AtKl, Unreached
from trimtab.guidance.evaluation.curve import Curve
from trimtab.guidance.evaluation.equal_cost import AtCost
from trimtab.guidance.evaluation.overoptimisation import Overoptimisation
from trimtab.guidance.evaluation.preferences import PreferenceReport
from trimtab.guidance.evaluation.steps import StepsReport
from trimtab.guidance.evaluation.sycophancy import SycophancyReport

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Subject:
    """What was judged, and how. settings: of the command, as text."""

    model: str
    heads: tuple[str, ...]
    settings: dict[str, str]


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt with a reply at each knob of a curve."""

    curve: str
    prompt: str
    knobs: tuple[float, ...]
    replies: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FrontierReport:
    """gold: the scores that nobody was trained on, by name. at_kl: curves at equal price. at_cost: points
    that cost more tokens than plain replies, beside best-of-n at equal cost. baseline: the
    curve that they are compared with there. problems: replies that could not be scored, and what was skipped.
    unreached: curves that do not come so far as one of the prices. num_comparisons: over which the intervals
    of the differences hold at once. bias_trials: settings of the static bias, as the tuning prompts ranked
    them. wordings, steering_trials: system prompts and layers likewise."""

    num_prompts: int
    gold: tuple[str, ...]
    curves: tuple[Curve, ...]
    at_kl: tuple[AtKl, ...] = ()
    baseline: str | None = None
    overoptimisation: tuple[Overoptimisation, ...] = ()
    examples: tuple[Example, ...] = ()
    problems: tuple[str, ...] = ()
    unreached: tuple[Unreached, ...] = ()
    num_comparisons: int = 0
    bias_trials: tuple[BiasTrial, ...] = ()
    wordings: tuple[WordingTrial, ...] = ()
    steering_trials: tuple[SteeringTrial, ...] = ()
    at_cost: tuple[AtCost, ...] = ()

    @property
    def score_names(self) -> tuple[str, ...]:
        """Gold first, then the proxies, each once."""
        names = [*self.gold, *(name for curve in self.curves for name in curve.score_names)]
        return tuple(dict.fromkeys(names))


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """A section is None where it was not asked for."""

    subject: Subject
    preferences: PreferenceReport | None = None
    frontier: FrontierReport | None = None
    sycophancy: SycophancyReport | None = None
    steps: StepsReport | None = None
    format: int = FORMAT

    def to_json(self) -> str:
        return json.dumps(as_data(self), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def as_data(value: Any) -> Any:
    """Dataclasses as objects, without the fields that are marked as no data; numbers that are not finite as
    null."""
    if dataclasses.is_dataclass(value):
        shown = [f.name for f in dataclasses.fields(value) if f.metadata.get("is_data", True)]
        return {name: as_data(getattr(value, name)) for name in shown}
    if isinstance(value, dict):
        return {str(key): as_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_data(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
