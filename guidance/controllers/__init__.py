"""Controllers: decide how strong each token's tilt is from what was measured of its reply.

CONTROLLERS names them as requests do. A controller is a file with its settings, its formula and what it needs
of a head, and a line here; the API gives it a field of its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any

from trimtab.guidance.controllers.base import Controller
from trimtab.guidance.controllers.entropy_gate import EntropyGate
from trimtab.guidance.controllers.kl_budget import KLBudget
from trimtab.guidance.controllers.max_kl import MaxKL
from trimtab.guidance.controllers.on import On
from trimtab.guidance.controllers.schedule import Schedule
from trimtab.guidance.controllers.target import Target
from trimtab.guidance.errors import ControllerError
from trimtab.guidance.ranges import read_setting

CONTROLLERS: dict[str, type[Controller]] = {
    "max_kl": MaxKL,
    "kl_budget": KLBudget,
    "target": Target,
    "schedule": Schedule,
    "entropy_gate": EntropyGate,
    "on": On,
}
HORIZON = "horizon"
"""The one setting that stands beside the controllers, for all of them that look ahead."""


def read_controllers(given: Mapping[str, Any]) -> tuple[Controller, ...]:
    """The controllers that a request asks for. given: settings by the names of CONTROLLERS, and `horizon`, as
    JSON has them; None is left out.

    Raises ControllerError for what is out of range, unknown or missing; it names the key.
    """
    asked = {name: value for name, value in given.items() if value is not None}
    horizon, found = asked.pop(HORIZON, None), []
    for name in asked:
        if name not in CONTROLLERS:
            raise ControllerError(name, f"no such controller; there are {', '.join(CONTROLLERS)}, {HORIZON}")
    ahead = [name for name, kind in CONTROLLERS.items() if HORIZON in _defaults(kind)]
    if horizon is not None and not asked.keys() & set(ahead):
        raise ControllerError(HORIZON, f"says nothing without {' or '.join(ahead)}; leave it out")
    for name in CONTROLLERS:
        if name in asked:
            takes_horizon = horizon is not None and name in ahead
            found.append(_read(name, asked[name], {HORIZON: horizon} if takes_horizon else {}))
    return tuple(found)


def keys_of(kind: type[Controller]) -> tuple[str, ...]:
    """Of its settings, in order; a number that is all of them has the controller's own name."""
    return tuple(name for name in _defaults(kind) if name != HORIZON)


def _defaults(kind: type[Controller]) -> dict[str, object]:
    return {field.name: field.default for field in fields(kind)}  # type: ignore[arg-type]


def _read(name: str, value: object, horizon: Mapping[str, Any]) -> Controller:
    kind = CONTROLLERS[name]
    if keys_of(kind) == (name,):
        return kind(**{name: value}, **horizon)
    if not isinstance(value, Mapping):
        raise ControllerError(name, f"must be an object of {', '.join(keys_of(kind))}")
    settings = {key: setting for key, setting in value.items() if setting is not None}
    for key in settings:
        if key not in keys_of(kind):
            raise ControllerError(f"{name}.{key}", f"unknown; there are {', '.join(keys_of(kind))}")
    for key in keys_of(kind):
        if key not in settings and _defaults(kind)[key] is MISSING:
            raise ControllerError(f"{name}.{key}", "is required")
    return kind(**settings, **horizon)


def parse_controllers(text: str) -> dict[str, Any]:
    """Settings as read_controllers takes them, of a line such as `max_kl=0.05,target=kind:1,horizon=8`.

    Raises ControllerError for one that cannot be read; whether it is in range, read_controllers says.
    """
    found: dict[str, Any] = {}
    for entry in filter(None, map(str.strip, text.split(","))):
        name, sign, value = (part.strip() for part in entry.partition("="))
        if name not in (*CONTROLLERS, HORIZON):
            raise ControllerError(name, f"no such controller; there are {', '.join(CONTROLLERS)}, {HORIZON}")
        keys = keys_of(CONTROLLERS[name]) if name in CONTROLLERS else (name,)
        values = [read_setting(part.strip()) for part in value.split(":")]
        if not sign or len(values) > len(keys):
            raise ControllerError(name, f"write {_spelling(name, keys)}")
        if name in found:
            raise ControllerError(name, "given twice")
        found[name] = values[0] if keys == (name,) else dict(zip(keys, values, strict=False))
    return found


def spellings() -> tuple[str, ...]:
    """What parse_controllers reads, each setting once: `max_kl=MAX_KL`, `target=HEAD:VALUE`, …"""
    return (
        *(_spelling(name, keys_of(kind)) for name, kind in CONTROLLERS.items()),
        _spelling(HORIZON, (HORIZON,)),
    )


def _spelling(name: str, keys: Sequence[str]) -> str:
    return f"{name}={':'.join(key.upper() for key in keys)}"
