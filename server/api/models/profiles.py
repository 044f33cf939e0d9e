"""Profiles: `guidance` objects under names, which clients ask for as models."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from trimtab.guidance.errors import ConfigError
from trimtab.server.api.config import ApiConfig
from trimtab.server.api.errors import ModelNotFoundError, invalid_fields
from trimtab.server.api.requests import resolve_guidance
from trimtab.server.api.schemas.chats import ChatRequest
from trimtab.server.api.schemas.completions import CompletionRequest
from trimtab.server.api.schemas.guidance import GuidanceFields
from trimtab.server.api.schemas.readings import ScoreRequest
from trimtab.server.engine.request import EngineInfo, InvalidRequestError, Request, check_request

Body = TypeVar("Body", ChatRequest, CompletionRequest, ScoreRequest)
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MAX_NAMES = 10  # that an error lists


def read_profiles(given: Mapping[str, Any]) -> dict[str, GuidanceFields]:
    """Of what a configuration holds: a `guidance` object, as requests have it, by name.

    Raises ConfigError, which names the profile and the field.
    """
    found = {}
    for name, fields in given.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigError(f"profile {name!r}: a name has 1 to 64 letters, digits, dots, - and _")
        try:
            found[name] = GuidanceFields.model_validate(json.loads(json.dumps(fields)))
        except ValidationError as error:
            problem = invalid_fields(error.errors(), "guidance") or "must be a mapping, such as {strength: 2}"
            raise ConfigError(f"profile {name!r}: {problem}") from error
        except (TypeError, ValueError) as error:  # of what YAML has and JSON has not, such as dates
            raise ConfigError(f"profile {name!r}: holds what JSON does not ({error})") from error
    return found


def check_profiles(config: ApiConfig, info: EngineInfo) -> None:
    """Raises ConfigError for a profile that no request could be steered by. config: resolved."""
    for name, fields in config.profiles.items():
        has_negative = fields.rule is not None and fields.rule.negative_prompt is not None
        try:
            guidance = resolve_guidance(fields, config, info, (0,) if has_negative else ())
            check_request(Request("", (0,), guidance=guidance), info)
        except InvalidRequestError as error:
            raise ConfigError(f"profile {name!r}: {error}") from error


def model_ids(config: ApiConfig, info: EngineInfo) -> dict[str, GuidanceFields | None]:
    """What `model` may be, each with the guidance that it stands for; the model's own with none."""
    profiles = {f"{info.model_name}:{name}": fields for name, fields in config.profiles.items()}
    return {info.model_name: None, **profiles}


def find_model(asked: str, ids: Mapping[str, GuidanceFields | None]) -> GuidanceFields | None:
    """What that id stands for. Raises ModelNotFoundError, which lists those that there are."""
    if asked not in ids:
        names = [repr(name) for name in ids]
        more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
        has = f"{', '.join(names[:_MAX_NAMES])}{more}"
        shown = asked if len(asked) <= 100 else f"{asked[:99]}…"
        raise ModelNotFoundError(f"model: {shown!r} is not served here; this server has {has}")
    return ids[asked]


def steered(body: Body, ids: Mapping[str, GuidanceFields | None]) -> Body:
    """The body with the guidance of the profile that it asks for; its own takes the whole's place.

    Raises like find_model.
    """
    profile = None if body.model is None else find_model(body.model, ids)
    if profile is None or body.guidance is not None:
        return body
    return body.model_copy(update={"guidance": profile})
