"""Command-line flags from configuration dataclasses: name, type, default and help are written there, once."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from trimtab.guidance.config_file import own_fields_first
from trimtab.guidance.errors import UsageError, UserError

T = TypeVar("T")
FLAGS = "flags"
"""Key of a field's metadata: which fields of a contained configuration have flags; by default all."""
REPEATS = "repeats"
"""The same: whether the flag is given once for each entry of a tuple."""
NO_FLAG = "no_flag"
"""The same: what flags cannot say; a file can."""


def parse(config: type[T], prog: str, args: Sequence[str], defaults: Mapping[str, Any] | None = None) -> T:
    """The configuration that the arguments describe.

    A field that is `tyro.conf.OmitArgPrefixes` of a dataclass contains it: the flags of its fields have their
    plain names and stand in a group called after the field, and `config` may say what they do in its stead.

    defaults: values of fields, contained ones too, that take the place of the dataclasses' own defaults.

    Raises UsageError for values that it refuses; exits with a message for flags that do not exist.
    """
    about, help_of = describe(config)
    registry = ConstructorRegistry()
    contained = _contained(config)
    defaults_of = dict.fromkeys((config, *contained), defaults or {})
    registry.struct_rule(partial(_documented_dataclass, defaults_of, contained, help_of))
    return tyro.cli(config, prog=prog, description=about, args=args, registry=registry)


def describe(config: type[Any]) -> tuple[str, dict[str, str]]:
    """A dataclass's docstring as prose and as help by field.

    Our docstrings explain fields, and those of what is contained, as `name: text`, after the prose. A
    subclass adds to its bases' help.
    """
    inside = (field for contained in _contained(config) for field in dataclasses.fields(contained))
    names = "|".join(field.name for field in (*dataclasses.fields(config), *inside))
    help_of: dict[str, str] = {}
    for cls in reversed(config.__mro__):
        prose, *pairs = re.split(rf"(?:^|(?<=\.)) *\b({names}): ", cls.__doc__ or "", flags=re.MULTILINE)
        help_of |= {name: _one_line(text) for name, text in zip(pairs[::2], pairs[1::2], strict=True)}
    return _paragraphs(prose), help_of


@dataclasses.dataclass(frozen=True, slots=True)
class Option:
    """A field that has a flag, or would but for NO_FLAG. kind: its type. holder: the field of the
    configuration that contains it; None for one of its own."""

    field: dataclasses.Field[Any]
    kind: Any
    holder: str | None = None

    def value(self, config: Any) -> Any:
        """In that configuration."""
        return getattr(config if self.holder is None else getattr(config, self.holder), self.field.name)


def options(config: type[Any]) -> dict[str, Option]:
    """By name: fields of what is contained stand in the place of what contains them."""
    contained, types = _contained(config), typing.get_type_hints(config)
    found = {}
    for field in own_fields_first(config):
        kind = types[field.name]
        if kind not in contained:
            found[field.name] = Option(field, kind)
            continue
        inner = typing.get_type_hints(kind)
        found |= {
            f.name: Option(f, inner[f.name], field.name)
            for f in own_fields_first(kind)
            if f.name in contained[kind]
        }
    return found


def _paragraphs(prose: str) -> str:
    """Paragraphs, each in one line; one that is indented (an example) keeps its lines."""
    paragraphs = inspect.cleandoc(prose).split("\n\n")
    return "\n\n".join(p if p.startswith("  ") else _one_line(p) for p in paragraphs)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _contained(config: type[Any]) -> dict[type[Any], Sequence[str]]:
    """The dataclasses that a configuration contains, with the names of their fields that have flags."""
    types, found = typing.get_type_hints(config, include_extras=True), {}
    for field in dataclasses.fields(config):
        if tyro.conf.OmitArgPrefixes in getattr(types[field.name], "__metadata__", ()):
            inner = typing.get_args(types[field.name])[0]
            found[inner] = field.metadata.get(FLAGS, [f.name for f in own_fields_first(inner)])
    return found


def _documented_dataclass(
    defaults: Mapping[Any, Mapping[str, Any]],
    contained: Mapping[type[Any], Sequence[str]],
    help_of_root: Mapping[str, str],
    info: StructTypeInfo,
) -> StructConstructorSpec | None:
    if not dataclasses.is_dataclass(info.type):
        return None
    help_of = describe(info.type)[1]
    if info.type in contained:
        help_of |= help_of_root
    types = typing.get_type_hints(info.type, include_extras=True)
    for name in types:
        if name.endswith("_options"):  # which the help says after a group's name
            types[name] = Annotated[types[name], tyro.conf.arg(name=name.removesuffix("_options"))]
    for field in dataclasses.fields(info.type):
        if field.metadata.get(REPEATS):
            types[field.name] = Annotated[types[field.name], tyro.conf.UseAppendAction]
    values = {
        f.name: defaults.get(info.type, {}).get(f.name, _default(f, info.default))
        for f in own_fields_first(info.type)
    }
    shown = contained.get(
        info.type, [f.name for f in own_fields_first(info.type) if NO_FLAG not in f.metadata]
    )
    fields = [StructFieldSpec(name, types[name], values.pop(name), help_of.get(name)) for name in shown]
    return StructConstructorSpec(partial(_build, info.type, **values), tuple(fields))


def _build(config: type[T], /, **values: Any) -> T:
    try:
        return config(**values)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _default(field: dataclasses.Field[Any], instance: Any) -> Any:
    if dataclasses.is_dataclass(instance):
        return getattr(instance, field.name)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return tyro.MISSING if field.default is dataclasses.MISSING else field.default


def parse_weights(text: str) -> dict[str, float]:
    """Weights by head; a name alone weighs 1. Raises UserError for a weight that is no number."""
    pairs = (entry.partition("=") for entry in text.split(",") if entry.strip())
    return {name.strip(): parse_number(weight or "1") for name, _, weight in pairs}


def parse_number(text: str) -> float:
    """Raises UserError for what is none."""
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{text!r} is no number; write for example 0.5") from None
