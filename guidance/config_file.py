"""Configurations as YAML: a mapping with the names of a dataclass's fields, nested as it is."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Union

import yaml

from trimtab.guidance.errors import DataError


def read_config(cls: type[Any], path: Path) -> dict[str, Any]:
    """Values for fields of the dataclass `cls` that a YAML file gives; nested dataclasses come whole, with
    their defaults for what the file leaves out.

    Raises:
        DataError: no file, not YAML, an unknown key (the known ones are named), or a wrong value.
    """
    loaded = load_yaml(path)
    try:
        return _values(cls, {} if loaded is None else loaded, "")
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def load_yaml(path: Path) -> Any:
    """What a YAML file holds; None of an empty one. Raises DataError for no file, and for other than YAML."""
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    except ValueError as error:
        raise DataError(f"{path}: is not YAML ({error})") from error


def parse_yaml(text: str) -> Any:
    """Numbers and booleans as YAML 1.2 has them: `on` is a word, and 1e-3 a number. Raises ValueError."""
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from error


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # which has no types
    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"(?:[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"),
    list("-+.0123456789"),
)


def to_yaml(config: Any) -> str:
    """A dataclass, or a mapping, as YAML that read_config gives back."""
    return yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True)


def own_fields_first(cls: type[Any]) -> list[dataclasses.Field[Any]]:
    """The fields of a dataclass as a reader looks for them: its own, then those of each base."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    names = dict.fromkeys(name for base in cls.__mro__ for name in vars(base).get("__annotations__", ()))
    return [fields[name] for name in names if name in fields]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in own_fields_first(type(value))}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _values(cls: type[Any], data: object, where: str) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise ValueError(f"{where or 'the file'} must hold a mapping, got {data!r}")
    known = {f.name: f for f in own_fields_first(cls)}
    types_of, prefix = typing.get_type_hints(cls), f"{where}." if where else ""
    for key in data:
        if key not in known:
            raise ValueError(f"unknown key {prefix}{key}, known are {', '.join(known)}")
    return {key: convert(types_of[key], value, f"{prefix}{key}", known[key]) for key, value in data.items()}


def convert(kind: Any, value: object, where: str, field: dataclasses.Field[Any]) -> Any:
    """The value of a dataclass's field of this type, as YAML holds it. Raises ValueError, which names it."""
    if dataclasses.is_dataclass(kind):
        assert isinstance(kind, type)
        default: Any = field.default_factory() if callable(field.default_factory) else field.default
        try:
            return dataclasses.replace(default, **_values(kind, value, where))
        except ValueError as error:
            raise ValueError(str(error) if where in str(error) else f"{where}: {error}") from None
    for option in _options(kind):
        try:
            return _as(option, value)
        except (TypeError, ValueError):
            continue
    wanted = " or ".join(_name(option) for option in _options(kind))
    raise ValueError(f"{where} must be {wanted}, got {value!r}")


def _options(kind: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(kind) in (Union, types.UnionType)
    return typing.get_args(kind) if is_union else (kind,)


def _as(kind: Any, value: Any) -> Any:
    """The value as `kind`. Raises TypeError or ValueError where it is none."""
    origin = typing.get_origin(kind)
    if origin is Literal:
        if value not in typing.get_args(kind):
            raise ValueError
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise TypeError
        return tuple(_as(typing.get_args(kind)[0], item) for item in value)
    if origin is dict:
        kind = dict
    if kind is type(None) or value is None:
        if not (kind is type(None) and value is None):
            raise TypeError
        return None
    if kind is float and not isinstance(value, bool):
        return float(value)  # also of a string: YAML 1.1 reads 1e-3 as one
    if kind is Path and isinstance(value, str):
        return Path(value)
    if type(value) is not kind:
        raise TypeError
    return value


def _name(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(str(choice) for choice in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return f"a list, each {_name(typing.get_args(kind)[0])}"
    if typing.get_origin(kind) is dict:
        return "a mapping"
    names = {str: "a string", Path: "a path", bool: "true or false", int: "a whole number", float: "a number"}
    return "nothing" if kind is type(None) else names[kind]
