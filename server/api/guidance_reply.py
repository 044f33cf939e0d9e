"""What guidance measured and did, as it is written in replies."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from trimtab.server.api.tokens import TokenText
from trimtab.server.engine.request import GuidanceSummary, TokenRecord

Json = dict[str, Any]
_LEAST_LOGPROB = -9999.0  # OpenAI's stand-in for minus infinity


def jsonable_logprob(logprob: float) -> float:
    """nats, with minus infinity replaced by what JSON can write."""
    return max(logprob, _LEAST_LOGPROB)


def summary_json(summary: GuidanceSummary) -> Json:
    """Of one choice; `value` and `reward` by head, in standard units."""
    return {
        "kl": summary.kl,
        "mean_strength": summary.mean_strength,
        "value": dict(summary.value),
        "reward": dict(summary.reward),
        "flips": summary.flips,
    }


def trace_json(tokens: Iterable[TokenRecord], token_text: TokenText) -> list[Json]:
    """One entry per token that carries a trace."""
    return [
        {
            "token": token_text.text(token.token_id),
            "value": dict(token.trace.value),
            "kl": token.trace.kl,
            "strength": token.trace.strength,
            "entropy": token.trace.entropy,
            "logprob": jsonable_logprob(token.logprob),
            "base_logprob": jsonable_logprob(token.trace.base_logprob),
            "flip": token.trace.flip,
            "base_top": [
                {"token": token_text.text(token_id), "logprob": jsonable_logprob(logprob)}
                for token_id, logprob in token.trace.base_top
            ],
        }
        for token in tokens
        if token.trace is not None
    ]
