"""Variety: how much replies to one prompt, and to different ones, repeat each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sacrebleu.metrics.bleu import BLEU

from trimtab.guidance.evaluation.replies import MeasuredReply

MAX_COMPARISONS = 200
MAX_REFERENCES = 7


@dataclass(frozen=True, slots=True)
class Repetition:
    """distinct_1, distinct_2: different uni- and bigrams of tokens ÷ all (1: nothing repeats).
    self_bleu: 0…100 (100: all alike). None where fewer than two replies could be compared."""

    distinct_1: float | None
    distinct_2: float | None
    self_bleu: float | None


@dataclass(frozen=True, slots=True)
class Variety:
    """within: among the replies to one prompt, averaged over prompts. across: among the first replies to all
    prompts. Both depend on how many replies are compared: compare only equal numbers of them."""

    within: Repetition
    across: Repetition


def measure_variety(replies: Sequence[MeasuredReply], *, per_prompt: int, seed: int = 0) -> Variety:
    """per_prompt: so many of each prompt's replies are read, the first ones.
    seed: of the choice of what self-BLEU compares."""
    groups: defaultdict[int, list[MeasuredReply]] = defaultdict(list)
    for reply in replies:
        if len(groups[reply.prompt]) < per_prompt:
            groups[reply.prompt].append(reply)
    several = [group for group in groups.values() if len(group) > 1]
    return Variety(
        within=_repetition(several, seed),
        across=_repetition([[group[0] for group in groups.values()]] if len(groups) > 1 else [], seed),
    )


def distinct(token_ids: Sequence[Sequence[int]], n: int) -> float:
    """Different n-grams of tokens ÷ all n-grams, over all replies together (Li 2016). 0 where there is none.

    By hand: (1, 2, 1) and (1, 2) hold the bigrams 12, 21, 12: distinct-2 is 2/3.
    """
    grams = [tuple(ids[i : i + n]) for ids in token_ids for i in range(len(ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def self_bleu(
    groups: Sequence[Sequence[str]],
    *,
    max_comparisons: int = MAX_COMPARISONS,
    max_references: int = MAX_REFERENCES,
    seed: int = 0,
) -> float | None:
    """The mean BLEU of a text against others of its group (Zhu 2018): 100 where all are alike.

    At most max_comparisons texts are taken, each against at most max_references others, drawn by the seed.
    Empty texts are left out. None where no group holds two texts.
    """
    random = np.random.default_rng(seed)
    filled = [texts for group in groups if len(texts := [text for text in group if text.strip()]) > 1]
    candidates = [(texts, at) for texts in filled for at in range(len(texts))]
    if not candidates:
        return None
    bleu = BLEU(effective_order=True)
    chosen = random.permutation(len(candidates))[:max_comparisons]
    scores = []
    for texts, at in (candidates[i] for i in chosen):
        scores.append(_against_others(bleu, texts, at, max_references, random))
    return float(np.mean(scores))


def _against_others(
    bleu: BLEU, texts: Sequence[str], at: int, max_references: int, random: np.random.Generator
) -> float:
    others = [text for i, text in enumerate(texts) if i != at]
    references = [others[i] for i in random.permutation(len(others))[:max_references]]
    return float(bleu.sentence_score(texts[at], references).score)


def _repetition(groups: Sequence[Sequence[MeasuredReply]], seed: int) -> Repetition:
    if not groups:
        return Repetition(None, None, None)
    ids = [[reply.token_ids for reply in group] for group in groups]
    texts = [[reply.text for reply in group] for group in groups]
    first, second = (float(np.mean([distinct(group, n) for group in ids])) for n in (1, 2))
    return Repetition(first, second, self_bleu(texts, seed=seed))
