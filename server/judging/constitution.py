"""Constitution: reads the written principles by which a judge compares replies, in YAML."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trimtab.guidance.errors import DataError

QUESTION = "Which reply follows the principle better?"


@dataclass(frozen=True, slots=True)
class Principle:
    """text: what a good reply does. weight: above 0, against the others'. question: put after the replies."""

    text: str
    weight: float = 1.0
    question: str = QUESTION

    def __post_init__(self) -> None:
        for name in ("text", "question"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise DataError(f"{name}: must be text, got {value!r}")
        is_number = isinstance(self.weight, int | float) and not isinstance(self.weight, bool)
        if not is_number or not math.isfinite(self.weight) or self.weight <= 0:
            raise DataError(f"weight: must be a number above 0, got {self.weight!r}")


@dataclass(frozen=True, slots=True)
class Constitution:
    """Parsed from `name: …` and `principles:`, a list of {text, weight?, question?}."""

    name: str
    principles: tuple[Principle, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise DataError(f"name: must be text, got {self.name!r}")
        texts = [principle.text for principle in self.principles]
        if not texts:
            raise DataError("principles: must hold at least one")
        if len(set(texts)) < len(texts):
            raise DataError("principles: one text stands there twice")


def load_constitution(path: Path) -> Constitution:
    """Raises DataError, one line that names the file, the key and what is wrong with it."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    except yaml.YAMLError as error:
        raise DataError(f"{path}: is not YAML ({' '.join(str(error).split())})") from error
    try:
        return _constitution(data)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _constitution(data: object) -> Constitution:
    fields = _checked(Constitution, data, "")
    principles = fields["principles"]
    if not isinstance(principles, list):
        raise DataError(f"principles: must be a list, got {str(principles)[:40]!r}")
    built = []
    for number, item in enumerate(principles):
        where = f"principles[{number}]."
        values = _checked(Principle, item, where)
        try:
            built.append(Principle(**values))
        except DataError as error:
            raise DataError(f"{where}{error}") from None
    return Constitution(fields["name"], tuple(built))


def _checked(cls: type[Any], data: object, where: str) -> dict[str, Any]:
    """Its keys are those that the class knows and needs."""
    if not isinstance(data, dict):
        raise DataError(
            f"{where.rstrip('.') or 'the file'}: must hold keys and values, got {str(data)[:40]!r}"
        )
    known = {field.name: field.default is dataclasses.MISSING for field in dataclasses.fields(cls)}
    for key in data:
        if key not in known:
            raise DataError(f"{where}{key}: unknown key, known are {', '.join(known)}")
    for key, is_needed in known.items():
        if is_needed and key not in data:
            raise DataError(f"{where}{key}: is missing")
    return data
