"""Gold reward: how much oftener a story's words are positive than negative, by an opinion lexicon.

TRIMTAB_LEXICON names the lexicon, a zip with positive-words.txt and negative-words.txt.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from examples.words import credit, opinion_signs, words
from trimtab.guidance.errors import DataError

LEXICON_VARIABLE = "TRIMTAB_LEXICON"


def score(prompt: str, reply: str) -> float:
    """100 (positive words − negative words) ÷ words of the reply alone; 0 where it has no word.

    Raises DataError where TRIMTAB_LEXICON names no lexicon.
    """
    signs = list(_signs(reply))
    return 100 * sum(sign for _, sign in signs) / max(1, len(signs))


def score_tokens(prompt: str, reply: str, tokens: Sequence[str]) -> list[float]:
    """The same by tokens: 100/words for the token in which a positive word ends, −100/words for a negative
    one's. They sum to the reply's score. tokens: their texts, which follow each other in the reply."""
    signs = list(_signs(reply))
    return credit(reply, tokens, ((end, 100 * sign / len(signs)) for end, sign in signs))


def _signs(reply: str) -> Iterator[tuple[int, int]]:
    """Where each word of the reply ends, and its sign."""
    lexicon = os.environ.get(LEXICON_VARIABLE, "")
    if not lexicon:
        raise DataError(f"{LEXICON_VARIABLE} is not set: name the zip of the opinion lexicon")
    try:
        signs = opinion_signs(Path(lexicon))
    except DataError as error:
        raise DataError(f"{LEXICON_VARIABLE}: {error}") from error
    for end, word in words(reply.removesuffix("<|")):
        yield end, signs.get(word, 0)
