"""The API's configuration, and how its open questions are settled once the engine is known."""

from __future__ import annotations

from dataclasses import dataclass, replace

from trimtab.server.engine.info import EngineInfo
from trimtab.server.engine.request import Guidance


@dataclass(frozen=True, slots=True)
class ApiConfig:
    """served_model_name: None for the engine's own name. default_head: None for the only one loaded.

    default_strength: of requests without a `guidance` object. chat_template: Jinja text that replaces
    the tokenizer's.
    """

    served_model_name: str | None = None
    default_head: str | None = None
    default_strength: float = 0.0
    chat_template: str | None = None


def resolve_config(config: ApiConfig, info: EngineInfo) -> ApiConfig:
    """The configuration with its name and default head filled in.

    Raises ValueError for a default that the loaded heads cannot honour.
    """
    Guidance(strength=config.default_strength)  # its range is checked in one place
    heads = {head.name: head for head in info.heads}
    name = config.default_head
    if name is None and len(heads) == 1:
        name = next(iter(heads))
    if name is not None and name not in heads:
        raise ValueError(f"default head {name!r} is not loaded; loaded heads: {', '.join(heads) or 'none'}")
    if config.default_strength != 0:
        if name is None:
            raise ValueError(f"default strength {config.default_strength:g} needs a default head; name one")
        if not heads[name].has_advantage:
            raise ValueError(f"default head {name!r} has no advantage and cannot steer; use strength 0")
    return replace(config, served_model_name=config.served_model_name or info.model_name, default_head=name)
