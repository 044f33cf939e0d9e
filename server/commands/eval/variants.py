"""Variants of an evaluation: heads under rules, controllers and best-of-n, at several settings of a knob."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from trimtab.guidance.controllers import CONTROLLERS, HORIZON, parse_controllers, read_controllers
from trimtab.guidance.controllers.base import Controller
from trimtab.guidance.errors import ControllerError, RuleError, UserError
from trimtab.guidance.evaluation.baselines.best_of_n import best_of_n
from trimtab.guidance.evaluation.curve import Curve
from trimtab.guidance.evaluation.replies import Heads, MeasuredReply
from trimtab.guidance.rules import Contrast, Rule, Tilt, parse_rule, read_rule
from trimtab.server.commands.eval.bench import Bench
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.request import Guidance, InvalidRequestError, Request
from trimtab.server.flags import parse_number
from trimtab.server.rollouts.sample import EncodedPrompt

STRENGTH, BEST_OF = "strength", "best_of"
OtherPrompt = Callable[[int], tuple[int, ...]]
"""The token ids of a prompt behind the system prompt, by the prompt's number."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """How replies are drawn: what points share that differ in best_of alone."""

    strength: float
    controllers: tuple[Controller, ...] = ()
    rule: Rule = field(default_factory=Tilt)


@dataclass(frozen=True, slots=True)
class Setting:
    """Of one point. knob: its value of what the curve's points differ by."""

    knob: float
    drawing: Drawing
    best_of: int = 1


@dataclass(frozen=True, slots=True)
class Variant:
    """One of --controllers or --rules, as it was given: text. settings: of the points; where is_open, their
    strengths are those of the heads' plain curve. takes_heads: each head makes a curve of it."""

    text: str
    flag: str
    knob: str
    settings: tuple[Setting, ...]
    is_open: bool
    takes_heads: bool

    def name(self, heads: str) -> str:
        """Of the curve of heads that are called so."""
        return f"{heads} {self.text}" if heads else self.text

    @property
    def rule(self) -> Rule:
        return self.settings[0].drawing.rule

    @property
    def is_best_of(self) -> bool:
        return any(setting.best_of > 1 for setting in self.settings)

    def at(self, strengths: Sequence[float]) -> tuple[Setting, ...]:
        """The settings; open ones at these strengths."""
        if not self.is_open:
            return self.settings
        only = self.settings[0]
        return tuple(replace(only, knob=s, drawing=replace(only.drawing, strength=s)) for s in strengths)


def read_controlled(text: str) -> Variant:
    """Reads a line of --controllers such as `max_kl=0.01/0.05,strength=5`. Raises UserError, which names
    it."""
    return _named("--controllers", text, _read_controlled)


def read_ruled(text: str) -> Variant:
    """Reads a line of --rules such as `smc,particles=8,strength=1/2/4`. Raises UserError, which names it."""
    return _named("--rules", text, _read_ruled)


def _named(flag: str, text: str, read: Callable[[str], Variant]) -> Variant:
    try:
        return replace(read(text), text=text, flag=flag)
    except (ControllerError, RuleError, UserError) as error:
        raise UserError(f"{flag} {text}: {error}") from error


def _read_controlled(text: str) -> Variant:
    entries = _entries(text)
    variant = _read(Tilt.kind, entries)
    if not variant.settings[0].drawing.controllers:
        raise UserError("names no controller")
    return variant


def _read_ruled(text: str) -> Variant:
    kind, _, rest = text.partition(",")
    return _read(kind.strip(), _entries(rest))


def _entries(text: str) -> dict[str, list[str]]:
    """The values of each setting, as they are written."""
    entries: dict[str, list[str]] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, sign, values = part.partition("=")
        if not sign or name in entries:
            raise UserError(f"write {name}=VALUE once, or {name}=VALUE/VALUE/… for the points of a curve")
        entries[name] = values.split("/")
    return entries


def _read(kind: str, entries: dict[str, list[str]]) -> Variant:
    several = [name for name, values in entries.items() if len(values) > 1]
    if len(several) > 1:
        raise UserError(f"only one setting may have several values, not {' and '.join(several)}")
    knob = several[0] if several else STRENGTH
    settings = [_setting(kind, entries, knob, i) for i in range(len(entries.get(knob, "1")))]
    drawing = settings[0].drawing
    if knob != STRENGTH and min(setting.knob for setting in settings) <= 0:  # 0 is the plain policy's
        raise UserError(f"the values of {knob} along a curve must be above 0")
    has_strength, is_tilt = STRENGTH in entries, isinstance(drawing.rule, Tilt)
    needs_strength = bool(is_tilt or drawing.rule.reads_values or drawing.controllers)
    if knob != STRENGTH and needs_strength and not has_strength:
        what = "which it is to lessen" if drawing.controllers else "at which the heads steer"
        raise UserError(f"add strength=…, {what}")
    if knob == STRENGTH and not has_strength and not is_tilt:
        raise UserError(f"add strength=…/…, or give an option of {kind} several values, for a curve's points")
    if drawing.rule.is_pool and any(setting.best_of > 1 for setting in settings):
        raise UserError(f"{kind} returns one of its sequences; leave best_of out")
    ordered = tuple(sorted(settings, key=lambda setting: setting.knob))
    is_open = is_tilt and not has_strength
    return Variant("", "", knob, ordered, is_open=is_open, takes_heads=has_strength or is_tilt)


def _setting(kind: str, entries: Mapping[str, list[str]], knob: str, point: int) -> Setting:
    chosen = {name: values[point if len(values) > 1 else 0] for name, values in entries.items()}
    strength = parse_number(chosen.pop(STRENGTH, "0"))
    best_of = parse_number(chosen.pop(BEST_OF, "1"))
    if best_of < 1 or best_of != int(best_of):
        raise UserError("best_of must be a whole number of at least 1")
    is_controller = {name: name in (*CONTROLLERS, HORIZON) or kind == Tilt.kind for name in chosen}
    rule = _rule(kind, {name: value for name, value in chosen.items() if not is_controller[name]})
    spelled = ",".join(f"{name}={value}" for name, value in chosen.items() if is_controller[name])
    drawing = Drawing(strength, read_controllers(parse_controllers(spelled)), rule)
    at = parse_number(entries[knob][point].rpartition(":")[2]) if knob in entries else 0.0
    return Setting(at, drawing, int(best_of))


def _rule(kind: str, chosen: Mapping[str, str]) -> Rule:
    """As in a request, but for contrast's γ: from the policy, at 0, to the policy behind the system prompt,
    at 1, and beyond."""
    kind, options = parse_rule(",".join([kind, *(f"{name}={value}" for name, value in chosen.items())]))
    if kind == Contrast.kind:
        gamma = options.setdefault("gamma", 1.5)
        if isinstance(gamma, int | float):
            options["gamma"] = 1 - gamma
        options["negative_prompt"] = (0,)  # each prompt's own is put there
    return read_rule(kind, options)


def suited(
    engine: Engine, steering: Mapping[str, Heads], variant: Variant, *, has_prompt: bool
) -> dict[str, Heads]:
    """The curves' heads that a variant can be had of, by their names; of one that takes none, no heads.
    has_prompt: there is a system prompt. Raises UserError where there is none."""
    if isinstance(variant.rule, Contrast) and not has_prompt:
        raise UserError(
            f"{variant.flag} {variant.text}: contrast weighs the policy behind a system prompt against the "
            "policy without; give --system-prompts"
        )
    able, problem = {}, "there is no head to steer"
    for name, heads in (steering if variant.takes_heads else {"": ()}).items():
        try:
            for setting in variant.at((1.0,)):
                drawing = setting.drawing
                guidance = Guidance(
                    drawing.strength, heads, controllers=drawing.controllers, rule=drawing.rule
                )
                engine.check(Request("variant", (0,), guidance=guidance))
            able[name] = heads
        except InvalidRequestError as error:
            problem = str(error)
    if not able:
        raise UserError(f"{variant.flag} {variant.text}: {problem}")
    return able


def variant_curves(
    bench: Bench,
    name: str,
    heads: Heads,
    variant: Variant,
    strengths: Sequence[float],
    proxy: str | None,
    other: OtherPrompt | None,
) -> list[Curve]:
    """One, or with best_of one for each score that the best are chosen by. name: of the heads. strengths: of
    its points, where it is open."""
    curve, settings = variant.name(name), [each for each in variant.at(strengths) if each.knob]
    drawn = _draw(bench, curve, heads, settings, other)
    if not variant.is_best_of:
        points = [bench.plain, *(bench.point(drawn[each.drawing], each.knob) for each in settings)]
        points.sort(key=lambda point: point.knob)
        is_bound = variant.rule.is_pool
        return [Curve(curve, "head", variant.knob, tuple(points), proxy=proxy, is_bound=is_bound)]
    scores = {drawing: bench.judges(replies) for drawing, replies in drawn.items()}
    found = []
    for by in bench.best_by:
        points = [bench.plain] if variant.knob == STRENGTH else []
        for each in settings:
            best = best_of_n(drawn[each.drawing], scores[each.drawing], by, (each.best_of,), bench.judging)
            points += [replace(point, knob=each.knob) for point in best.points]
        points.sort(key=lambda point: point.knob)
        found.append(Curve(f"{curve} by {by}", "head", variant.knob, tuple(points), proxy=by, is_bound=True))
    return found


def _draw(
    bench: Bench, label: str, heads: Heads, settings: Sequence[Setting], other: OtherPrompt | None
) -> dict[Drawing, list[MeasuredReply]]:
    """The replies of each drawing, as many as its points choose among."""
    most: dict[Drawing, int] = {}
    for each in settings:
        most[each.drawing] = max(most.get(each.drawing, bench.plan.num_replies), each.best_of)
    knobs = {each.drawing: each.knob for each in reversed(settings)}
    return {
        drawing: bench.sample(
            f"{label} at {knobs[drawing]:g}",
            heads=heads,
            strength=drawing.strength,
            controllers=drawing.controllers,
            rule=_rule_of(drawing.rule, other),
            num_replies=num,
        )
        for drawing, num in most.items()
    }


def _rule_of(rule: Rule, other: OtherPrompt | None) -> Callable[[EncodedPrompt], Rule]:
    if not isinstance(rule, Contrast):
        return lambda prompt: rule
    assert other is not None
    return lambda prompt: replace(rule, negative_prompt=other(prompt.number))
