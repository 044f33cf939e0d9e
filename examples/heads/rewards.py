"""Rewards of the heads warm, concise and plain, by token, from word lists that nobody here made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from examples.words import credit, opinion_signs, words

LEXICON = Path(__file__).parent / "data" / "opinion_lexicon.zip"
FEW_WORDS = 40
"""A shorter reply is scored as if it had so many words: two kind ones alone are no triumph."""
EVERYDAY = 5.0
"""Zipf frequency, the logarithm of occurrences in 10⁹ words, from which on a word is as plain as any."""
FAMILIAR = 5.6
"""Zipf frequency from which on a word carries the grammar of a sentence rather than its content."""
WORD_COST, END_BONUS, KEPT_BONUS = 0.05, 2.0, 2.0


def warm(prompt: Any, reply: str, tokens: Sequence[str]) -> list[float]:
    """100 (positive − negative words) ÷ words, by Hu and Liu's opinion lexicon; the k-th time that a word
    stands in the reply it counts 1/k², so that saying one word over and over pays little."""
    signs = opinion_signs(LEXICON)
    return credit(reply, tokens, _shared(reply, lambda word, count: signs.get(word, 0) * 100 / count**2))


def plain(prompt: Any, reply: str, tokens: Sequence[str]) -> list[float]:
    """−10 Σ max(0, 5 − Zipf frequency) ÷ words, by wordfreq: what rare words cost. Words of the prompt are
    free, since an answer has to say them."""
    asked = {word for _, word in words(text_of(prompt))}
    return credit(
        reply,
        tokens,
        _shared(reply, lambda word, _: 0.0 if word in asked else -10 * max(0.0, EVERYDAY - zipf(word))),
    )


def concise(prompt: Any, reply: str, tokens: Sequence[str]) -> list[float]:
    """−0.05 for each word, 2 for an end of its own, and 2 × the share of the prompt's content words that the
    reply takes up, each where it first does."""
    asked = content_words(text_of(prompt))
    scores = []
    for end, word in words(reply):
        kept = word in asked
        asked = asked - {word}
        scores.append((end, KEPT_BONUS / num_content(prompt) * kept - WORD_COST))
    by_token = credit(reply, tokens, scores)
    if tokens and tokens[-1] == "":  # only an end token has no text
        by_token[-1] += END_BONUS
    return by_token


def _shared(reply: str, score: Any) -> Iterator[tuple[int, float]]:
    """score(word, how often it has stood so far) of each word, divided by the number of words."""
    found = list(words(reply))
    seen: Counter[str] = Counter()
    for end, word in found:
        seen[word] += 1
        yield end, score(word, seen[word]) / max(len(found), FEW_WORDS)


def content_words(text: str) -> frozenset[str]:
    """Words of a text that say what it is about."""
    return frozenset(word for _, word in words(text) if len(word) > 2 and zipf(word) < FAMILIAR)


def num_content(prompt: Any) -> int:
    return max(1, len(content_words(text_of(prompt))))


def text_of(prompt: Any) -> str:
    """What the user asked: a string as it is, of messages the last one's text."""
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])


@lru_cache(maxsize=100_000)
def zipf(word: str) -> float:
    from wordfreq import zipf_frequency  # noqa: PLC0415 (reads its word list when first asked)

    return float(zipf_frequency(word.strip("'-"), "en"))
