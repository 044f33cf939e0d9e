"""Gold reward: how much oftener a story's words are positive than negative, by an opinion lexicon.

TRIMTAB_LEXICON names the lexicon, a zip with positive-words.txt and negative-words.txt.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from trimtab.guidance.errors import DataError

LEXICON_VARIABLE = "TRIMTAB_LEXICON"
_WORD = re.compile(r"[a-z'-]+")


def score(prompt: str, reply: str) -> float:
    """100 (positive words − negative words) ÷ words of the reply alone; 0 where it has no word.

    Raises DataError where TRIMTAB_LEXICON names no lexicon.
    """
    words = list(_words(reply))
    return 100 * sum(sign for _, sign in words) / max(1, len(words))


def score_tokens(prompt: str, reply: str, tokens: Sequence[str]) -> list[float]:
    """The same by tokens: 100/words for the token in which a positive word ends, −100/words for a negative
    one's. They sum to the reply's score. tokens: their texts, which follow each other in the reply."""
    words = list(_words(reply))
    scores = [0.0] * len(tokens)
    ends = _ends(reply, tokens)
    token = 0
    for end, sign in words:
        while token < len(tokens) - 1 and ends[token] < end:
            token += 1
        scores[token] += 100 * sign / len(words)
    return scores


def _words(reply: str) -> Iterator[tuple[int, int]]:
    """Where each word of the reply ends, and its sign."""
    signs = _signs(os.environ.get(LEXICON_VARIABLE, ""))
    for match in _WORD.finditer(reply.removesuffix("<|").lower()):
        yield match.end(), signs.get(match.group(), 0)


def _ends(reply: str, tokens: Sequence[str]) -> list[int]:
    """Where each token ends in the reply, from which what stood before its first word may be stripped."""
    ends, at = [], len(reply) - len("".join(tokens))
    for token in tokens:
        at += len(token)
        ends.append(at)
    return ends


@lru_cache(maxsize=1)
def _signs(lexicon: str) -> dict[str, int]:
    if not lexicon:
        raise DataError(f"{LEXICON_VARIABLE} is not set: name the zip of the opinion lexicon")
    signs: dict[str, int] = {}
    try:
        with zipfile.ZipFile(Path(lexicon)) as archive:
            for name in archive.namelist():
                sign = name.endswith("positive-words.txt") - name.endswith("negative-words.txt")
                lines = archive.read(name).decode("latin-1").splitlines() if sign else []
                signs |= {line: sign for line in lines if line and not line.startswith(";")}
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{LEXICON_VARIABLE}={lexicon} cannot be read ({error})") from error
    if not signs:
        raise DataError(f"{LEXICON_VARIABLE}={lexicon} holds no positive-words.txt or negative-words.txt")
    return signs
