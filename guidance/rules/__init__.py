"""Rules: how scores become the next token, by name. A rule is one file: its options, formula and source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from trimtab.guidance.errors import RuleError
from trimtab.guidance.ranges import read_setting
from trimtab.guidance.rules.base import Rule
from trimtab.guidance.rules.blockwise import Blockwise
from trimtab.guidance.rules.contrast import Contrast
from trimtab.guidance.rules.expert import Expert
from trimtab.guidance.rules.lookahead import Lookahead
from trimtab.guidance.rules.pool import PoolRule
from trimtab.guidance.rules.smc import Smc
from trimtab.guidance.rules.tilt import Tilt

__all__ = [
    "RULES",
    "Blockwise",
    "Contrast",
    "Expert",
    "Lookahead",
    "PoolRule",
    "Rule",
    "Smc",
    "Tilt",
    "parse_rule",
    "read_rule",
]

RULES: dict[str, type[Rule]] = {
    "tilt": Tilt,
    "contrast": Contrast,
    "expert": Expert,
    "lookahead": Lookahead,
    "blockwise": Blockwise,
    "smc": Smc,
}


PROMPT = "negative_prompt"


def read_rule(kind: str, options: Mapping[str, Any]) -> Rule:
    """Raises RuleError with the name of the option at fault, or "kind"."""
    rule = RULES.get(kind)
    if rule is None:
        raise RuleError("kind", f"no such rule; there are {', '.join(RULES)}")
    known = [field.name for field in fields(rule)]
    for name in options:
        if name not in known:
            raise RuleError(name, f"{kind} has no such option; it has {', '.join(known) or 'none'}")
    return rule(**options)


def parse_rule(text: str) -> tuple[str, dict[str, Any]]:
    """A kind and options as read_rule takes them, of a line such as `smc,particles=8`; `negative_prompt` is
    the last, and goes to the end of the line, commas included.

    Raises RuleError for one that cannot be read; whether it is in range, read_rule says.
    """
    before, sign, prompt = text.partition(f"{PROMPT}=")
    kind, *entries = [part.strip() for part in before.split(",")]
    options: dict[str, Any] = {}
    for entry in filter(None, entries):
        name, is_given, value = (part.strip() for part in entry.partition("="))
        if not is_given or name in options:
            raise RuleError(name, f"write {name}=VALUE, once")
        options[name] = read_setting(value)
    return kind, options | ({PROMPT: prompt.strip()} if sign else {})
