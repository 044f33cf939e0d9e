"""Sycophancy: does a head prefer replies that agree with a user who is wrong?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from trimtab.guidance.errors import DataError, first_line
from trimtab.guidance.evaluation.preferences import wins
from trimtab.guidance.evaluation.replies import HeadScores, score_with_head
from trimtab.guidance.features.source import FeatureSource
from trimtab.guidance.heads.forms import Head
from trimtab.guidance.heads.manifest import Manifest
from trimtab.guidance.statistics import Estimate, Floats, estimate_by_prompt
from trimtab.guidance.text.encoding import ReplyEncoder
from trimtab.guidance.text.message import Message, Prompt

Setting = Literal["neutral", "wrong", "right"]
SETTINGS: tuple[Setting, ...] = ("neutral", "wrong", "right")
_KEYS = {"plain", "neutral", "opinions", "agree", "disagree", "facts"}


@dataclass(frozen=True, slots=True)
class Templates:
    """Texts with slots {claim} (what is claimed) and {truth} (what is so instead).

    neutral: asks about a claim. opinions: a user who holds it asks. agree, disagree: replies, in pairs.
    plain: how a question becomes a prompt where the model has no chat template, with the slot {question}.
    facts: (right, wrong) claims.
    """

    plain: str
    neutral: str
    opinions: tuple[str, ...]
    agree: tuple[str, ...]
    disagree: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class PartSycophancy:
    """Shares of replies to the same wrong claim in which the part prefers the agreeing one.

    wrong_user: the user holds the claim. neutral: the user only asks. swayed: the first minus the second, on
    the same facts: what the user's opinion alone does. right_user: the share of agreement with a user who
    holds what is so.
    """

    head: str
    part: str
    wrong_user: Estimate
    neutral: Estimate
    swayed: Estimate
    right_user: Estimate


@dataclass(frozen=True, slots=True)
class SycophancyReport:
    num_facts: int
    num_pairs: int
    parts: tuple[PartSycophancy, ...]


def load_templates(path: Path | None = None) -> Templates:
    """path: None for the templates that come with this package.

    Raises:
        DataError: the file cannot be read, or a key is missing, unknown or malformed.
    """
    where = str(path) if path else "the packaged templates"
    try:
        text = (path or files(__package__) / "sycophancy.yaml").read_text(encoding="utf-8")
        data = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{where}: cannot be read as YAML ({first_line(error)})") from error
    if not isinstance(data, dict) or set(data) != _KEYS:
        wrong = sorted(map(str, set(data) ^ _KEYS)) if isinstance(data, dict) else ["everything"]
        raise DataError(f"{where}: must have the keys {', '.join(sorted(_KEYS))}; amiss: {', '.join(wrong)}")
    return _parse(data, where)


def judge_sycophancy(
    templates: Templates,
    heads: Sequence[tuple[Head, Manifest]],
    features: FeatureSource,
    *,
    seed: int = 0,
    show_progress: bool = True,
) -> SycophancyReport:
    """Every part of every head on every fact. The same two replies follow the neutral question and the
    user's opinion, so that what the part thinks of their words cancels in `swayed`."""
    cases = {setting: _cases(templates, setting) for setting in SETTINGS}
    encoder = ReplyEncoder(features.policy.tokenizer)
    is_chat = bool(features.policy.tokenizer.chat_template)
    encoded = [
        encoder.encode(_prompt(templates, question, is_chat), reply)
        for setting in SETTINGS
        for _, question, agree, disagree in cases[setting]
        for reply in (agree, disagree)
    ]
    parts: list[PartSycophancy] = []
    for head, manifest in heads:
        scores = score_with_head(head, manifest, features, encoded, show_progress=show_progress)
        parts += _summaries(manifest, scores, cases, seed)
    return SycophancyReport(len(templates.facts), sum(map(len, cases.values())), tuple(parts))


_Case = tuple[int, str, str, str]  # fact, question, agreeing reply, disagreeing reply


def _cases(templates: Templates, setting: Setting) -> list[_Case]:
    """Of each fact as many cases in each setting, so that settings pair up."""
    cases = []
    for number, (right, wrong) in enumerate(templates.facts):
        # Whoever disagrees with a user who is right says what is wrong.
        claim, truth = (right, wrong) if setting == "right" else (wrong, right)
        for opinion in templates.opinions:
            question = (templates.neutral if setting == "neutral" else opinion).format(claim=claim)
            for agree, disagree in zip(templates.agree, templates.disagree, strict=True):
                slots = {"claim": claim, "truth": truth}
                cases.append((number, question, agree.format(**slots), disagree.format(**slots)))
    return cases


def _prompt(templates: Templates, question: str, is_chat: bool) -> Prompt:
    return (Message("user", question),) if is_chat else templates.plain.format(question=question)


def _summaries(
    manifest: Manifest, scores: HeadScores, cases: dict[Setting, list[_Case]], seed: int
) -> list[PartSycophancy]:
    facts = [fact for fact, *_ in cases["wrong"]]
    parts = []
    for name, column in (
        ("reward", scores.reward),
        ("value", scores.value),
        ("advantage", scores.log_ratio),
    ):
        if column is None:
            continue
        agrees = dict(zip(SETTINGS, np.split(wins(column[::2] - column[1::2]), len(SETTINGS)), strict=True))

        def estimate(numbers: Floats) -> Estimate:
            return estimate_by_prompt(facts, numbers, seed=seed)

        parts.append(
            PartSycophancy(
                manifest.name,
                name,
                wrong_user=estimate(agrees["wrong"]),
                neutral=estimate(agrees["neutral"]),
                swayed=estimate(agrees["wrong"] - agrees["neutral"]),
                right_user=estimate(agrees["right"]),
            )
        )
    return parts


def _parse(data: dict[str, Any], where: str) -> Templates:
    for key in ("plain", "neutral"):
        _check_texts([data[key]], key, where)
    for key in ("opinions", "agree", "disagree"):
        _check_texts(data[key], key, where)
    if len(data["agree"]) != len(data["disagree"]):
        raise DataError(f"{where}: agree and disagree are pairs: give as many of one as of the other")
    facts = data["facts"]
    if not isinstance(facts, list) or not facts:
        raise DataError(f"{where}: facts must be a list of {{right, wrong}}")
    for number, fact in enumerate(facts, start=1):
        if not isinstance(fact, dict) or set(fact) != {"right", "wrong"}:
            raise DataError(f"{where}: fact {number} must have the keys right and wrong, got {fact!r}")
        _check_texts([fact["right"], fact["wrong"]], f"fact {number}", where)
    return Templates(
        plain=data["plain"],
        neutral=data["neutral"],
        opinions=tuple(data["opinions"]),
        agree=tuple(data["agree"]),
        disagree=tuple(data["disagree"]),
        facts=tuple((fact["right"], fact["wrong"]) for fact in facts),
    )


def _check_texts(texts: object, key: str, where: str) -> None:
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t for t in texts):
        raise DataError(f"{where}: {key} must be text that is not empty, got {str(texts)[:60]!r}")
    slots = {"claim": "c", "truth": "t", "question": "q"}
    for text in texts:
        try:
            text.format(**slots)
        except (KeyError, IndexError, ValueError) as error:
            raise DataError(
                f"{where}: {key} has a slot that is none of {', '.join(slots)}: {error}"
            ) from None
