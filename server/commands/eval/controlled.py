"""Controlled curves of an evaluation: heads under controllers, at several settings of one knob."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trimtab.guidance.controllers import parse_controllers, read_controllers
from trimtab.guidance.controllers.base import Controller
from trimtab.guidance.errors import ControllerError, UserError
from trimtab.guidance.evaluation.curve import Curve
from trimtab.guidance.evaluation.replies import Heads
from trimtab.server.commands.eval.bench import Bench
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.request import Guidance, InvalidRequestError, Request
from trimtab.server.flags import parse_number

STRENGTH = "strength"


@dataclass(frozen=True, slots=True)
class Setting:
    """Of one point. knob: its value of what the curve's points differ by."""

    knob: float
    strength: float
    controllers: tuple[Controller, ...]


@dataclass(frozen=True, slots=True)
class Controlled:
    """One of --controllers, as it was given: text. settings: of the points, where they differ by a knob of
    their own or by strengths that are named; else they have these controllers at the strengths of the heads'
    uncontrolled curve."""

    text: str
    knob: str
    controllers: tuple[Controller, ...]
    settings: tuple[Setting, ...] = ()

    def name(self, heads: str) -> str:
        """Of the curve of heads that are called so."""
        return f"{heads} {self.text}"


def read_controlled(text: str) -> Controlled:
    """Reads a line such as `max_kl=0.01/0.05,strength=5`. Raises UserError, which names it."""
    try:
        return _read(text)
    except (ControllerError, UserError) as error:
        raise UserError(f"--controllers {text}: {error}") from error


def _read(text: str) -> Controlled:
    entries = _entries(text)
    several = [name for name, values in entries.items() if len(values) > 1] or [STRENGTH]
    if len(several) > 1:
        raise UserError(f"only one setting may have several values, not {' and '.join(several)}")
    knob = several[0]
    strengths = [parse_number(value) for value in entries.pop(STRENGTH, ())]
    found = [_controllers(entries, i) for i in range(len(entries.get(knob, "1")))]
    if not found[0]:
        raise UserError("names no controller")
    if knob == STRENGTH:
        points = [Setting(strength, strength, found[0]) for strength in strengths]
    elif not strengths:
        raise UserError(f"add strength=…, which {knob} is to lessen")
    else:
        knobs = [parse_number(value.rpartition(":")[2]) for value in entries[knob]]
        if min(knobs) <= 0:  # 0 is the plain policy's
            raise UserError(f"the values of {knob} along a curve must be above 0")
        points = [Setting(at, strengths[0], each) for at, each in zip(knobs, found, strict=True)]
    return Controlled(text, knob, found[0], tuple(sorted(points, key=lambda point: point.knob)))


def _entries(text: str) -> dict[str, list[str]]:
    """The values of each setting, as they are written."""
    entries: dict[str, list[str]] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, sign, values = part.partition("=")
        if not sign or name in entries:
            raise UserError(f"write {name}=VALUE once, or {name}=VALUE/VALUE/… for the points of a curve")
        entries[name] = values.split("/")
    return entries


def _controllers(entries: Mapping[str, list[str]], point: int) -> tuple[Controller, ...]:
    chosen = {name: values[point if len(values) > 1 else 0] for name, values in entries.items()}
    return read_controllers(parse_controllers(",".join(f"{name}={value}" for name, value in chosen.items())))


def controlled_heads(
    engine: Engine, steering: Mapping[str, Heads], controlled: Controlled
) -> dict[str, Heads]:
    """Those of the curves' heads that can be controlled so. Raises UserError where none can."""
    able, problem = {}, "there is no head to control"
    for name, heads in steering.items():
        try:
            for point in controlled.settings or (Setting(1.0, 1.0, controlled.controllers),):
                guidance = Guidance(point.strength, heads, controllers=point.controllers)
                engine.check(Request("controlled", (0,), guidance=guidance))
            able[name] = heads
        except InvalidRequestError as error:
            problem = str(error)
    if not able:
        raise UserError(f"--controllers {controlled.text}: {problem}")
    return able


def controlled_curve(
    bench: Bench,
    name: str,
    heads: Heads,
    controlled: Controlled,
    strengths: Sequence[float],
    proxy: str | None,
) -> Curve:
    """strengths: of its points, where it names no settings."""
    settings = controlled.settings or [Setting(s, s, controlled.controllers) for s in strengths]
    points, curve = [bench.plain], controlled.name(name)
    for each in (each for each in settings if each.knob):
        label = f"{curve} at {each.knob:g}"
        replies = bench.sample(label, heads=heads, strength=each.strength, controllers=each.controllers)
        points.append(bench.point(replies, each.knob))
    points.sort(key=lambda point: point.knob)
    return Curve(curve, "head", controlled.knob, tuple(points), proxy=proxy)
