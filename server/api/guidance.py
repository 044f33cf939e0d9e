"""The request's `guidance` object as the engine's Guidance, by the server's default rules."""

from __future__ import annotations

from trimtab.server.api.config import ApiConfig
from trimtab.server.api.protocol import GuidanceFields
from trimtab.server.engine.info import EngineInfo
from trimtab.server.engine.request import Guidance, InvalidRequestError

Heads = tuple[tuple[str, float], ...]


def resolve_guidance(fields: GuidanceFields | None, config: ApiConfig, info: EngineInfo) -> Guidance:
    """No object: the server's default. Left-out heads: the default head. Left-out strength: 1 if another
    steering key is given, else the server's default. Nothing merges with anything else.

    config: resolved. Raises InvalidRequestError that names the field for an unknown head, a head that
    cannot do what is asked, and a number out of range.
    """
    if fields is None:
        return Guidance(config.default_strength, _weigh(config.default_head))
    strength = fields.strength
    if strength is None:
        strength = config.default_strength if fields.heads is None else 1.0
    heads = _default_heads(config, info) if fields.heads is None else tuple(fields.heads.items())
    guidance = Guidance(strength, heads, bool(fields.trace))
    _check_heads(guidance, info)
    return guidance


def _weigh(head: str | None) -> Heads:
    return () if head is None else ((head, 1.0),)


def _default_heads(config: ApiConfig, info: EngineInfo) -> Heads:
    if config.default_head is None and info.heads:
        raise InvalidRequestError(
            f"guidance.heads: name one; loaded are {_names(info)} and the server has no default head",
            "guidance.heads",
        )
    return _weigh(config.default_head)


def _check_heads(guidance: Guidance, info: EngineInfo) -> None:
    loaded = {head.name: head for head in info.heads}
    for name, weight in guidance.heads:
        param = f"guidance.heads.{name}"
        if name not in loaded:
            raise InvalidRequestError(f"{param}: no such head; loaded heads: {_names(info)}", param)
        if guidance.strength * weight != 0 and not loaded[name].has_advantage:
            raise InvalidRequestError(f"{param}: has no advantage and cannot steer; use weight 0", param)
    if guidance.strength != 0 and not loaded:
        raise InvalidRequestError(
            "guidance.strength: no head is loaded; start the server with --heads FOLDER", "guidance.strength"
        )


def _names(info: EngineInfo) -> str:
    return ", ".join(head.name for head in info.heads) or "none"
