"""End tokens: gathers what model, tokenizer and chat template say ends a reply."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from trimtab.guidance.errors import ChatTemplateError, PolicyError
from trimtab.guidance.text.render import TurnEnd, turn_end

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def reply_ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Every token that ends a reply, ascending; none where nothing names one."""
    turn = _turn_end(tokenizer)
    named = {*_of_model(model), *_ids(tokenizer.eos_token_id)}
    if turn is not None:
        named.add(turn.token_id)
    # What transformers takes for usual where no file says it may be any token of this vocabulary.
    return tuple(sorted(named or _ids(model.config.get_text_config().eos_token_id)))


def end_of_reply(tokenizer: PreTrainedTokenizerBase, *, is_chat: bool) -> int:
    """The token that ends a reply to learn from: in a chat what the template writes after it, else
    end-of-sequence. One of reply_ends.

    Raises:
        PolicyError: the tokenizer has neither.
    """
    turn = _turn_end(tokenizer) if is_chat else None
    if turn is not None and turn.is_closing:
        return turn.token_id
    if tokenizer.eos_token_id is None:
        raise PolicyError("the tokenizer has no eos_token: set the token that ends a reply")
    return int(tokenizer.eos_token_id)


def _turn_end(tokenizer: PreTrainedTokenizerBase) -> TurnEnd | None:
    if not tokenizer.chat_template:
        return None
    try:
        return turn_end(tokenizer)
    except ChatTemplateError as error:
        _warn(str(error))
        return None


@functools.lru_cache(maxsize=16)
def _warn(problem: str) -> None:
    """Once, however often the ends are asked for."""
    logger.warning("no end of a turn is known but the tokenizer's end of sequence: %s", problem)


def _of_model(model: PreTrainedModel) -> list[int]:
    """What generation_config.json and config.json say, or a model that was made in memory."""
    stated = _stated_config(model)
    named = [*_ids(stated.get("eos_token_id")), *_ids(stated.get("text_config", {}).get("eos_token_id"))]
    generation = model.generation_config
    if generation is not None:
        derived = getattr(generation, "_from_model_config", False)
        usual = _ids(model.config.get_text_config().eos_token_id) if derived else []
        named += [token for token in _ids(generation.eos_token_id) if token not in usual]
    return named


def _stated_config(model: PreTrainedModel) -> dict[str, Any]:
    """config.json as it was written, without what transformers adds."""
    if not model.name_or_path:
        return {"eos_token_id": model.config.get_text_config().eos_token_id}
    try:
        stated, _ = model.config.get_config_dict(model.name_or_path, local_files_only=True)
    except OSError:  # the folder has gone since it was loaded
        return {}
    return dict(stated)


def _ids(value: int | Iterable[int] | None) -> list[int]:
    if value is None:
        return []
    return [int(value)] if isinstance(value, int) else [int(each) for each in value]
