"""Strict models: refuse unknown fields, wrong types, and what is not supported.

Types are strict, and NaN and infinity are no numbers. Null means "left out". Ranges are checked where the
engine's own dataclasses are built, so each limit exists once. Fields that we do not implement are refused by
name unless they ask for nothing (see trimtab.server.api.neutral).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, model_validator

from trimtab.server.api import neutral
from trimtab.server.engine.request import InvalidRequestError


class StrictModel(BaseModel):
    """Refuses unknown fields, wrong types, and what is not supported."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    NEUTRAL: ClassVar[neutral.Harmless] = {}
    OFF: ClassVar[Mapping[str, tuple[object, object]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _keep_what_is_asked(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        kept, known = {}, _names(cls)
        for name, value in data.items():
            if value is None:
                continue
            if name in cls.NEUTRAL:
                if not neutral.asks_for_nothing(value, cls.NEUTRAL[name]):
                    raise InvalidRequestError(neutral.refusal(cls.NEUTRAL[name]), name)
            elif name in known or cls.model_config["extra"] == "allow":
                written, meant = cls.OFF.get(name, (None, None))
                kept[name] = meant if neutral.asks_for_nothing(value, (written,)) else value
            else:
                named = name.encode(
                    errors="backslashreplace"
                ).decode()  # pydantic cannot write half a character
                raise InvalidRequestError(neutral.unknown(named, [*known, *cls.NEUTRAL]), named)
        return kept


@cache
def _names(kind: type[BaseModel]) -> dict[str, None]:
    """Of the fields, as they are sent."""
    return dict.fromkeys(field.alias or name for name, field in kind.model_fields.items())


def at_most(most: int, what: str) -> BeforeValidator:
    """Of a list or an object, before any of it is looked at."""

    def check(value: Any) -> Any:
        if isinstance(value, list | dict) and len(value) > most:
            raise ValueError(f"has {len(value)} {what}, of at most {most}")
        return value

    return BeforeValidator(check)


def check_unicode(text: str) -> str:
    """JSON can escape half of a surrogate pair, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("is no Unicode text: it holds half of a surrogate pair") from error
    return text


UnicodeText = Annotated[str, AfterValidator(check_unicode)]
