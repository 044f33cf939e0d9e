"""A token to pad with that never ends a reply: classification models read the last token that is none."""

from __future__ import annotations

from collections.abc import Iterator

from transformers import PreTrainedTokenizerBase

from trimtab.guidance.text.ends import end_of_reply


def end_tokens(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Those that a reply may end with, in a chat and out of one. Raises PolicyError where there is none."""
    kinds = (False, True) if tokenizer.chat_template else (False,)
    if tokenizer.eos_token_id is None and tokenizer.chat_template:
        kinds = (True,)
    return {end_of_reply(tokenizer, is_chat=is_chat) for is_chat in kinds}


def set_pad_token(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> int | None:
    """Gives the tokenizer a pad token that ends no reply, and returns its id; None where it has none to give.

    Only the end of a row matters: a special token that stands elsewhere in replies serves. vocab_size: rows
    of the policy's embedding, of which one may be left for a new token.
    """
    ends = end_tokens(tokenizer)
    for token in _candidates(tokenizer):
        index = int(tokenizer.convert_tokens_to_ids(token))
        if index < vocab_size and index not in ends:
            tokenizer.pad_token = token
            return index
    if max(tokenizer.get_vocab().values()) + 1 < vocab_size:
        tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
        return int(tokenizer.pad_token_id)
    return None


def _candidates(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    special = list(tokenizer.all_special_tokens)
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    if tokenizer.pad_token is not None:
        yield tokenizer.pad_token
    yield from (token for token in (*special, *added) if "pad" in token.lower())
    if tokenizer.unk_token is not None:
        yield tokenizer.unk_token
    yield from (token for token in (*added, *special) if token != tokenizer.bos_token)
    if tokenizer.bos_token is not None:
        yield tokenizer.bos_token
