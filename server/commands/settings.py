"""Settings of a command: flags, before the environment, before a YAML file, before what is built in.

One name in three spellings: `--max-model-len`, TRIMTAB_MAX_MODEL_LEN, and `max_model_len` in the file.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from trimtab.guidance.config_file import convert, load_yaml, parse_yaml, to_yaml
from trimtab.guidance.errors import DataError, UsageError
from trimtab.server.flags import REPEATS, Option, options, parse

T = TypeVar("T")
PREFIX = "TRIMTAB_"
FROM = ("config", "print_config")
"""Options about options, which no file has."""
NOT_SETTINGS = ("TRIMTAB_API_KEYS", "TRIMTAB_ADMIN_KEYS")
"""They hold keys themselves, and the flags of their names files of them."""
_NEAR = 0.85
"""How like an option's a variable's name is that must be a slip; others may be somebody else's."""
_KUBERNETES = ("tcp://", "udp://", "sctp://")
"""How the values begin that it sets for a service which is called trimtab, TRIMTAB_PORT among them."""


def read_settings(
    config: type[T], prog: str, args: Sequence[str], environment: Mapping[str, str] = os.environ
) -> T:
    """Raises UsageError or DataError, which names the flag, variable, or key of the file."""
    known = options(config)
    file = config_file(args) or environment.get(f"{PREFIX}CONFIG")
    values = {} if not file else dict(_of_file(known, Path(file)))
    values |= _of_environment(known, environment)
    for name in [name for name, option in known.items() if option.field.metadata.get(REPEATS)]:
        flag = f"--{name.replace('_', '-')}"
        if any(arg.partition("=")[0] == flag for arg in args):  # which would be added to what there is
            values.pop(name, None)
    return parse(config, prog, args, values)


def settings_of(config: type[T], given: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> T:
    """The same of a mapping of options, which count as flags do, `config` among them; texts as variables have
    them. Raises like read_settings."""
    known = options(config)
    file = given.get("config") or environment.get(f"{PREFIX}CONFIG")
    values = {} if not file else dict(_of_file(known, Path(file)))
    values |= _of_environment(known, environment)
    for key, value in given.items():
        if key == "config":
            continue
        option = _find(key, known, "args")
        values[_name_of(key)] = (
            _of_text(option, value, key) if isinstance(value, str) else _convert(option, value, key)
        )
    return parse(config, "args", [], values)


def print_settings(settings: Any) -> str:
    """As YAML that --config reads."""
    found = ((name, option.value(settings)) for name, option in options(type(settings)).items())
    return to_yaml({name: value for name, value in found if name not in FROM})


def config_file(args: Sequence[str]) -> Path | None:
    """What --config names. Its values are the defaults of the other flags, so it is read before them."""
    for arg, following in zip(args, [*args, ""][1:], strict=True):
        name, has_value, value = arg.partition("=")
        if name == "--config":
            value = value if has_value else following
            if not value or value.startswith("--"):
                raise UsageError("--config needs a YAML file")
            return Path(value)
    return None


def _of_file(known: Mapping[str, Option], path: Path) -> Iterator[tuple[str, Any]]:
    loaded = load_yaml(path)
    if not isinstance(loaded, Mapping | None):
        raise DataError(f"{path}: must hold a mapping of options, such as `port: 8000`")
    for key, value in (loaded or {}).items():
        yield _name_of(key), _convert(_find(key, known, str(path)), value, f"{path}: {key}")


def _name_of(key: object) -> str:
    return str(key).replace("-", "_")


def _find(key: object, known: Mapping[str, Option], where: str) -> Option:
    name = _name_of(key)
    if name not in known or name in FROM:
        nearest = _nearest(name, known, cutoff=0.6)
        hint = f"did you mean {nearest}?" if nearest else "--print-config shows what there is"
        raise DataError(f"{where}: unknown key {key}; {hint}")
    return known[name]


def _of_environment(known: Mapping[str, Option], environment: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    for variable, text in environment.items():
        is_ours = variable.startswith(PREFIX) and variable not in NOT_SETTINGS
        if not is_ours or not text or text.startswith(_KUBERNETES):
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name in known and name not in FROM:
            yield name, _of_text(known[name], text, variable)
        elif name not in known and (nearest := _nearest(name, known, _NEAR)):
            raise UsageError(f"{variable}: no such option; did you mean {PREFIX}{nearest.upper()}?")


def _nearest(name: str, known: Mapping[str, Option], cutoff: float) -> str | None:
    return next(iter(get_close_matches(name, known, n=1, cutoff=cutoff)), None)


def _of_text(option: Option, text: str, variable: str) -> Any:
    """As YAML has it, where that fits; else as a list of what stands between commas; else as it is."""
    candidates: list[Any] = [[part.strip() for part in text.split(",")]]
    with contextlib.suppress(ValueError):
        candidates.insert(0, parse_yaml(text))
    for candidate in candidates:
        with contextlib.suppress(ValueError):
            return convert(option.kind, candidate, variable, option.field)
    try:
        return convert(option.kind, text, variable, option.field)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _convert(option: Option, value: Any, where: str) -> Any:
    try:
        return convert(option.kind, value, where, option.field)
    except ValueError as error:
        raise DataError(str(error)) from error
