"""Guidance as bodies carry it: heads, strength, rule and controllers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict

from trimtab.guidance.controllers import CONTROLLERS, HORIZON
from trimtab.server.api.schemas.messages import Messages
from trimtab.server.api.schemas.strict import StrictModel, UnicodeText, at_most

MAX_HEADS = 256
MAX_OPTIONS = 32  # of a rule


def _as_messages(prompt: Any) -> Any:
    return [{"role": "system", "content": prompt}] if isinstance(prompt, str) else prompt


class RuleFields(StrictModel):
    """The `rule` of a `guidance` object: its kind and the options which that has, that the engine knows and
    checks; but for a prompt, which is text or messages here and token ids there. Text is a system message."""

    model_config = ConfigDict(extra="allow")

    kind: str
    negative_prompt: Annotated[Messages | None, BeforeValidator(_as_messages)] = None

    @property
    def options(self) -> dict[str, Any]:
        """Those that are given, but the prompt."""
        return {name: value for name, value in (self.model_extra or {}).items() if value is not None}


def _as_rule(rule: Any) -> Any:
    return {"kind": rule} if isinstance(rule, str) else rule


class TargetFields(StrictModel):
    """See trimtab.guidance.controllers.target."""

    head: UnicodeText
    value: float


class ScheduleFields(StrictModel):
    """See trimtab.guidance.controllers.schedule."""

    kind: Literal["constant", "warmup", "decay"]
    tokens: int | None = None


class GuidanceFields(StrictModel):
    """The `guidance` object: which heads steer this request, how hard, and what controls it.

    A controller has a field of its name in trimtab.guidance.controllers.CONTROLLERS.
    """

    strength: float | None = None
    heads: Annotated[dict[str, float] | None, at_most(MAX_HEADS, "heads")] = None
    trace: bool | None = None
    rule: Annotated[RuleFields | None, BeforeValidator(_as_rule), at_most(MAX_OPTIONS, "options")] = None
    max_kl: float | None = None
    kl_budget: float | None = None
    target: TargetFields | None = None
    horizon: int | None = None
    schedule: ScheduleFields | None = None
    entropy_gate: float | None = None
    on: Literal["all", "reasoning", "answer"] | None = None

    @property
    def controllers(self) -> dict[str, Any]:
        """Settings as read_controllers takes them; empty where no controller is asked for."""
        return self.model_dump(include={*CONTROLLERS, HORIZON}, exclude_none=True)
