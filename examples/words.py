"""Words of a reply, and which of its tokens each ends in: what rewards by token are made of."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from trimtab.guidance.errors import DataError

_WORD = re.compile(r"[a-z'-]+")


def words(text: str) -> Iterator[tuple[int, str]]:
    """Where each word of a text ends, and the word in lower case."""
    for match in _WORD.finditer(text.lower()):
        yield match.end(), match.group()


def credit(reply: str, tokens: Sequence[str], scores: Iterable[tuple[int, float]]) -> list[float]:
    """Scores by token: each (end in the reply, score), in order, goes to the token in which that end lies.

    tokens: their texts, which follow each other in the reply; what stood before its first word may be
    stripped from the reply.
    """
    by_token = [0.0] * len(tokens)
    ends = _ends(reply, tokens)
    token = 0
    for end, score in scores:
        while token < len(tokens) - 1 and ends[token] < end:
            token += 1
        by_token[token] += score
    return by_token


def _ends(reply: str, tokens: Sequence[str]) -> list[int]:
    """Where each token ends in the reply."""
    ends, at = [], len(reply) - len("".join(tokens))
    for token in tokens:
        at += len(token)
        ends.append(at)
    return ends


@lru_cache(maxsize=2)
def opinion_signs(lexicon: Path) -> dict[str, int]:
    """1 or −1 for each positive or negative word of an opinion lexicon, a zip of positive-words.txt and
    negative-words.txt. Raises DataError where it is none."""
    signs: dict[str, int] = {}
    try:
        with zipfile.ZipFile(lexicon) as archive:
            for name in archive.namelist():
                sign = name.endswith("positive-words.txt") - name.endswith("negative-words.txt")
                lines = archive.read(name).decode("latin-1").splitlines() if sign else []
                signs |= {line: sign for line in lines if line and not line.startswith(";")}
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"opinion lexicon {lexicon} cannot be read ({error})") from error
    if not signs:
        raise DataError(f"{lexicon} holds no positive-words.txt or negative-words.txt")
    return signs
