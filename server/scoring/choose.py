"""Which scorer a name stands for: `reward:HEAD`, `function:MODULE:FUNCTION`, `judge:URL`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from trimtab.guidance.errors import HeadError
from trimtab.guidance.manifest import load_manifest
from trimtab.guidance.prompt_form import Rows
from trimtab.server.commands.errors import UserError
from trimtab.server.judging.answers import AnswerFile
from trimtab.server.judging.config import JudgeConfig
from trimtab.server.judging.questions import RUBRIC
from trimtab.server.scoring.functions import FunctionScorer, load_function, takes_tokens
from trimtab.server.scoring.score import Scorer


@dataclass(frozen=True, slots=True)
class ScorerContext:
    """What scorers are made of. model, heads: folders. answers: file that keeps a judge's answers. rows: as
    what prompts that are strings were sampled to."""

    model: str | Path
    heads: tuple[Path, ...]
    judge: JudgeConfig
    answers: Path
    rubric: str = RUBRIC
    device: str = "auto"
    rows: Rows = "auto"


def split_scorer(name: str) -> tuple[str, str]:
    """Its kind and what comes after the colon. Raises UserError for an unknown kind."""
    kind, _, rest = name.partition(":")
    if kind not in SCORERS:
        raise UserError(
            f"--score {name}: no such scorer; write reward:HEAD, function:MODULE:FUNCTION or judge:URL"
        )
    return kind, rest


def make_scorer(name: str, context: ScorerContext) -> Scorer:
    """Raises UserError, HeadError or PolicyError, one line, for one that cannot be had."""
    kind, rest = split_scorer(name)
    return SCORERS[kind](rest, context)


def measured_head(name: str) -> str:
    """The head of `reward:HEAD`, which the engine measures as it samples; "" for other scorers."""
    kind, rest = split_scorer(name) if name else ("", "")
    return rest if kind == "reward" else ""


def _reward(head: str, context: ScorerContext) -> Scorer:
    from trimtab.guidance.policy import load_policy  # noqa: PLC0415 (heavy)
    from trimtab.server.scoring.reward_part import RewardPartScorer  # noqa: PLC0415 (heavy)

    folders = {load_manifest(folder).name: folder for folder in context.heads}
    if head not in folders:
        raise HeadError(f"--score reward:{head}: no such head; given are {', '.join(folders) or 'none'}")
    return RewardPartScorer(load_policy(context.model, device=context.device), folders[head], context.rows)


def _function(name: str, context: ScorerContext) -> Scorer:
    function = load_function(name, "--score function:")
    if not takes_tokens(function):
        return FunctionScorer(function)
    from trimtab.server.scoring.token_texts import TokenTexts, load_tokenizer  # noqa: PLC0415 (heavy)

    return FunctionScorer(function, TokenTexts(load_tokenizer(context.model), context.rows))


def _judge(url: str, context: ScorerContext) -> Scorer:
    from trimtab.server.scoring.judge import JudgeScorer  # noqa: PLC0415 (asks over HTTP: not needed by others)

    config = replace(context.judge, judge_url=url or context.judge.judge_url)
    return JudgeScorer(config, AnswerFile(context.answers), context.rubric)


SCORERS: Mapping[str, Callable[[str, ScorerContext], Scorer]] = {
    "reward": _reward,
    "function": _function,
    "judge": _judge,
}
