"""Choice of attention: picks, in one place, how packed rows attend over the paged cache."""

from __future__ import annotations

from collections.abc import Callable

from trimtab.guidance.errors import ModelError
from trimtab.server.engine.attention.base import PagedAttention
from trimtab.server.engine.attention.sdpa import SdpaAttention
from trimtab.server.engine.attention.tiled import TiledAttention
from trimtab.server.engine.attention.triton import TritonAttention
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.kv_cache import KVCache
from trimtab.server.engine.step_state import StepState

ATTENTIONS: dict[str, Callable[[KVCache, StepState, bool], PagedAttention]] = {
    "sdpa": lambda cache, state, _: SdpaAttention(cache, state),
    "tiled": lambda cache, state, _: TiledAttention(cache, state),
    "triton": TritonAttention,
}


def make_attention(config: EngineConfig, cache: KVCache, state: StepState) -> PagedAttention:
    """What a resolved configuration names. Raises ModelError where that cannot run."""
    try:
        return ATTENTIONS[config.attention](cache, state, config.strict)
    except RuntimeError as error:
        raise ModelError(f"--attention {config.attention} cannot run here: {error}") from error
