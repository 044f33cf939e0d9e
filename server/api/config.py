"""Configuration of the API: settles its defaults once the engine is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from trimtab.guidance.errors import ConfigError
from trimtab.server.api.access.config import AccessConfig
from trimtab.server.api.generation_defaults import SamplingDefaults
from trimtab.server.api.telemetry.config import TelemetryConfig
from trimtab.server.engine.request import MAX_STRENGTH, EngineInfo

if TYPE_CHECKING:
    from trimtab.server.api.schemas.guidance import GuidanceFields

ToolCallParser = Literal["auto", "hermes", "llama3_json"]


@dataclass(frozen=True, slots=True)
class ApiConfig:
    """default_head: None for the only one loaded. default_strength: of requests without a `guidance` object.

    chat_template: Jinja text that replaces the tokenizer's.
    generation_config: where sampling_defaults come from: "auto"; a file or its folder; "none" or "vllm",
    for nowhere.
    tool_call_parser: how the model calls tools; `auto` goes by its chat template.
    access: who may ask, and how much. telemetry: what is told of it. profiles: guidance under names, see
    trimtab.server.api.models.profiles.
    """

    default_head: str | None = None
    default_strength: float = 0.0
    chat_template: str | None = None
    generation_config: str = "auto"
    sampling_defaults: SamplingDefaults = field(default_factory=SamplingDefaults)
    tool_call_parser: ToolCallParser = "auto"
    access: AccessConfig = field(default_factory=AccessConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    profiles: Mapping[str, GuidanceFields] = field(default_factory=dict)


def resolve_config(config: ApiConfig, info: EngineInfo) -> ApiConfig:
    """The configuration with its default head filled in.

    Raises ConfigError for a default that the loaded heads cannot honour.
    """
    if not abs(config.default_strength) <= MAX_STRENGTH:  # nan is refused too
        raise ConfigError(f"default strength {config.default_strength:g} is outside ±{MAX_STRENGTH:g}")
    heads = {head.name: head for head in info.heads}
    name = config.default_head
    if name is None and len(heads) == 1:
        name = next(iter(heads))
    if name is not None and name not in heads:
        raise ConfigError(
            f"default head {name!r} is not loaded (loaded: {_names(info)}); load it, or name another"
        )
    if config.default_strength != 0:
        if name is None:
            raise ConfigError(
                f"default strength {config.default_strength:g} needs a default head (loaded: {_names(info)})"
            )
        if not heads[name].has_advantage:
            raise ConfigError(f"default head {name!r} has no advantage and cannot steer; use strength 0")
    return replace(config, default_head=name)


def _names(info: EngineInfo) -> str:
    return ", ".join(head.name for head in info.heads) or "none"
