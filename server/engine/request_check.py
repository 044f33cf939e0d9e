"""The check of a request against the model and the heads that are to serve it."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from trimtab.guidance.errors import HeadError
from trimtab.guidance.heads.bank import HeadBank
from trimtab.server.engine.request import Guidance, InvalidRequestError, Request, shown

MIN_WEIGHT, MAX_WEIGHT = 1e-30, 1e30  # a head's scale included: fp32 holds these and their products with h


def check_request(request: Request, bank: HeadBank, max_model_len: int, vocab_size: int) -> None:
    """Raise InvalidRequestError for what can never be served."""
    _check_lengths(request, max_model_len)
    if not _are_ids(request.prompt_token_ids, vocab_size):
        raise InvalidRequestError(f"prompt: token ids must be 0…{vocab_size - 1}", "prompt")
    if not all(token < vocab_size for token, _ in request.sampling.logit_bias):
        raise InvalidRequestError(f"logit_bias: token ids must be 0…{vocab_size - 1}", "logit_bias")
    _check_heads(request.guidance, bank)


def _check_lengths(request: Request, limit: int) -> None:
    num_prompt, max_tokens = len(request.prompt_token_ids), request.sampling.max_tokens
    if num_prompt == 0:
        raise InvalidRequestError("prompt: is empty; give at least one token", "prompt")
    if num_prompt >= limit:
        raise InvalidRequestError(
            f"prompt: has {num_prompt} tokens, but this model's context holds {limit} with the reply; "
            "shorten it",
            "prompt",
        )
    if num_prompt + max_tokens > limit:
        raise InvalidRequestError(
            f"max_tokens: {shown(max_tokens)} with a prompt of {num_prompt} tokens exceeds "
            f"the context of {limit}; ask for at most {limit - num_prompt}",
            "max_tokens",
        )


def _are_ids(tokens: Sequence[int], vocab_size: int) -> bool:
    try:
        ids = array("q", tokens)
    except (TypeError, OverflowError):  # no integers, or beyond 64 bits
        return False
    return min(ids) >= 0 and max(ids) < vocab_size


def _check_heads(guidance: Guidance, bank: HeadBank) -> None:
    for name, _ in guidance.heads:
        if name not in bank.names:
            loaded = ", ".join(bank.names) or "none"
            raise InvalidRequestError(
                f"guidance.heads.{name}: no such head; loaded are: {loaded}", "guidance.heads"
            )
    if guidance.strength and not guidance.heads:
        raise InvalidRequestError(
            "guidance.heads: name at least one head, or set strength 0", "guidance.heads"
        )
    if guidance.strength:
        try:
            bank.check([(name, weight) for name, weight in guidance.heads if weight])
        except HeadError as error:
            raise InvalidRequestError(f"guidance.heads: {error}", "guidance.heads") from error
    if not all(w == 0 or MIN_WEIGHT < abs(w) < MAX_WEIGHT for w in bank.weights_row(guidance.heads)):
        raise InvalidRequestError(
            "guidance.heads: a weight times its head's scale is beyond what fp32 holds", "guidance.heads"
        )
