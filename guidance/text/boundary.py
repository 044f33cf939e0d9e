"""Tokens of a text that follows others which are fixed: as in the whole, never as if it stood alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ANCHORS = ("\n", "x", "(", ".", "0")
Ids = tuple[int, ...]


def following_tokens(
    tokenizer: PreTrainedTokenizerBase, before: str, before_ids: Sequence[int], text: str, *, is_chat: bool
) -> Ids:
    """Tokens y with decode(before_ids + y) = decode(before_ids) + text.

    A prompt is tokenized alone where it is served, so its tokens are fixed, and the reply's are those that
    the model would draw after them: what the whole has after the prompt where the whole begins with the
    prompt's tokens; else, where a token of the whole lies across the boundary, the text as it is split after
    something else. SentencePiece puts a space before a text that stands alone, which nobody would draw.

    is_chat: `before` is a rendered chat, to which the tokenizer adds no special tokens.
    """
    fixed = tuple(before_ids)
    if not text:
        return ()
    whole: Ids = tuple(tokenizer(before + text, add_special_tokens=not is_chat)["input_ids"])
    wanted, tried = decode(tokenizer, fixed) + text, dict[Ids, str]()
    for ids in _candidates(tokenizer, fixed, whole, text):
        tried.setdefault(ids, decode(tokenizer, (*fixed, *ids)))
        if tried[ids] == wanted:
            return ids
    # A tokenizer may not give back what it was given: it strips, or normalises.
    same = [ids for ids, read in tried.items() if read == decode(tokenizer, whole)]
    return [*same, *tried][0]


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Everything that the tokens say."""
    text = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def _candidates(tokenizer: PreTrainedTokenizerBase, fixed: Ids, whole: Ids, text: str) -> Iterator[Ids]:
    """The likeliest first."""
    if whole[: len(fixed)] == fixed:
        yield whole[len(fixed) :]
    for anchor in _ANCHORS:
        head: Ids = tuple(tokenizer(anchor, add_special_tokens=False)["input_ids"])
        both: Ids = tuple(tokenizer(anchor + text, add_special_tokens=False)["input_ids"])
        if both[: len(head)] == head:
            yield both[len(head) :]
    yield tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
