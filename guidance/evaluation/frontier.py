"""The reward-KL frontier: how far each strength moves the judged scores, and at what price."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from trimtab.guidance.evaluation.reply import Heads, Reply, Sample, Score
from trimtab.guidance.evaluation.report import Example, FrontierPoint, FrontierReport, ScoreSummary
from trimtab.guidance.evaluation.statistics import distinct, estimate_by_prompt


def frontier(
    sample: Sample,
    score: Score,
    prompts: Sequence[str],
    *,
    heads: Heads,
    strengths: Sequence[float] = (-2, -1, 0, 1, 2),
    num_examples: int = 4,
    seed: int = 0,
    show_progress: bool = True,
) -> FrontierReport:
    """Samples replies at every strength and judges them. A prompt that is given twice counts once.

    sample: (prompts, heads, strength) -> replies, one or more to each prompt.
    score: (prompt, reply) -> scores by name, the same names every time; None where it cannot say.
    seed: of the bootstrap and of the choice of example prompts.

    Raises:
        ValueError: no prompt or strength; or a prompt that was given no reply.
    """
    if not prompts or not strengths:
        raise ValueError("a frontier needs at least one prompt and one strength")
    different = list(dict.fromkeys(prompts))
    points, by_strength = [], []
    for strength in tqdm(strengths, desc="strengths", disable=not show_progress):
        replies = sample(different, heads, strength)
        unanswered = set(different) - {reply.prompt for reply in replies}
        if unanswered:
            raise ValueError(f"strength {strength:g}: no reply to {sorted(unanswered)[0][:60]!r}")
        points.append(judge(replies, score, strength, seed=seed))
        by_strength.append({reply.prompt: reply.text for reply in reversed(replies)})
    chosen = np.random.default_rng(seed).permutation(len(different))[:num_examples]
    examples = tuple(
        Example(different[i], tuple(texts[different[i]] for texts in by_strength)) for i in chosen
    )
    return FrontierReport(tuple(heads), len(different), tuple(points), examples)


def judge(replies: Sequence[Reply], score: Score, strength: float, *, seed: int = 0) -> FrontierPoint:
    """One point of the frontier: replies that were sampled at `strength`, scored and summarised."""
    judged = [score(reply.prompt, reply.text) for reply in replies]
    token_ids = [reply.token_ids for reply in replies]
    return FrontierPoint(
        strength=strength,
        num_replies=len(replies),
        scores={name: _summarise(replies, [j[name] for j in judged], seed) for name in judged[0]},
        kl=estimate_by_prompt([r.prompt for r in replies], [r.kl for r in replies], seed=seed),
        length=float(np.mean([len(ids) for ids in token_ids])),
        stopped=float(np.mean([reply.finish_reason == "stop" for reply in replies])),
        distinct_1=distinct(token_ids, 1),
        distinct_2=distinct(token_ids, 2),
    )


def _summarise(replies: Sequence[Reply], scores: Sequence[float | None], seed: int) -> ScoreSummary:
    parsed = [(r.prompt, s) for r, s in zip(replies, scores, strict=True) if s is not None]
    unparsable = 1 - len(parsed) / len(scores)
    if not parsed:
        return ScoreSummary(None, unparsable)
    prompts, numbers = zip(*parsed, strict=True)
    return ScoreSummary(estimate_by_prompt(prompts, numbers, seed=seed), unparsable)
