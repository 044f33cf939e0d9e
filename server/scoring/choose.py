"""Choice of a scorer: finds which one `reward:NAME`, `function:MODULE:FUNCTION`, `model:PATH[:LABEL]` or
`judge:URL` names."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.guidance.bundled import HEADS_DIR
from trimtab.guidance.data.rows import ReadColumns
from trimtab.guidance.errors import HeadError, UserError
from trimtab.guidance.heads.manifest import MANIFEST_FILE, TENSORS_FILE, load_manifest
from trimtab.guidance.text.prompt_form import Rows
from trimtab.server.judging.answers import AnswerFile
from trimtab.server.judging.config import JudgeConfig
from trimtab.server.judging.questions import RUBRIC
from trimtab.server.scoring.functions import BatchFunctionScorer, FunctionScorer, calling_of, load_function
from trimtab.server.scoring.scorer import Scorer

if TYPE_CHECKING:
    from trimtab.guidance.policy import Policy

SPELLINGS = "reward:NAME_OR_FOLDER, function:MODULE:FUNCTION, model:PATH or judge:URL"


@dataclass(frozen=True, slots=True)
class ScorerContext:
    """What scorers are made of. model, heads: folders. answers: file that keeps a judge's answers. rows: as
    what prompts that are strings were sampled to. flag: that the scorer was named with. policy: the model,
    where it is loaded already."""

    model: str | Path
    heads: tuple[Path, ...]
    judge: JudgeConfig
    answers: Path
    rubric: str = RUBRIC
    device: str = "auto"
    rows: Rows = "auto"
    flag: str = "--score"
    policy: Policy | None = None


def split_scorer(name: str, flag: str = "--score") -> tuple[str, str]:
    """Its kind and what comes after the colon. Raises UserError for an unknown kind."""
    kind, _, rest = name.partition(":")
    if kind not in SCORERS:
        raise UserError(f"{flag} {name}: no such scorer; write {SPELLINGS}")
    return kind, rest


def check_scorer(name: str, flag: str = "--score") -> ReadColumns:
    """Told before any work: whether the name can be a scorer's. Returns what it reads of the prompt file.

    Raises UserError for an unknown kind, and for a function that cannot be had or called.
    """
    kind, rest = split_scorer(name, flag) if name else ("", "")
    return calling_of(load_function(rest, flag)).columns if kind == "function" else ReadColumns()


def make_scorer(name: str, context: ScorerContext) -> Scorer:
    """Raises UserError, HeadError or PolicyError, one line, for one that cannot be had."""
    kind, rest = split_scorer(name, context.flag)
    return SCORERS[kind](rest, context)


def identity_of(name: str, context: ScorerContext) -> str:
    """All that a scorer's scores depend on beside the replies, as far as files can tell."""
    kind, rest = split_scorer(name, context.flag)
    files: list[Path] = []
    if kind == "function":
        source = getattr(sys.modules.get(rest.partition(":")[0]), "__file__", None)
        files = [Path(source)] if source and Path(source).is_file() else []
    elif kind == "reward":
        folder = reward_folder(rest, context.heads, context.flag)
        files = [folder / MANIFEST_FILE, folder / TENSORS_FILE]
    elif kind == "model":
        weights = sorted(Path(split_label(rest)[0]).glob("*"))
        name += str([(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in weights])
    digest = hashlib.sha256(f"{name} {context.model} {context.rubric} {context.device}".encode())
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def reward_folder(name: str, heads: Sequence[Path], flag: str = "--score") -> Path:
    """The head that `reward:NAME_OR_FOLDER` stands for: one of `heads` by its name, any by its folder, or a
    bundled one by its name.

    Raises HeadError for one that is not there, or has no reward part; UserError for a name that is that of a
    head and of another head's folder.
    """
    given = {load_manifest(folder).name: folder for folder in heads}
    named, folder = given.get(name), Path(name)
    is_folder = (folder / MANIFEST_FILE).is_file()
    if named is not None and is_folder and named.resolve() != folder.resolve():
        raise UserError(
            f"{flag} reward:{name} names the head {named} and the folder ./{name}: write which of the two"
        )
    bundled = HEADS_DIR / name
    found = named or (folder if is_folder else bundled if _is_plain(name) and bundled.is_dir() else None)
    if found is None:
        known = ", ".join(given) or "none"
        raise HeadError(f"{flag} reward:{name}: no head of that name or folder; loaded are {known}")
    if load_manifest(found).parts.reward is None:
        with_one = [n for n, f in given.items() if load_manifest(f).parts.reward is not None]
        raise HeadError(
            f"{flag} reward:{name}: the head has no reward part; with one: {', '.join(with_one) or 'none'}"
        )
    return found


def with_reward_head(name: str, heads: tuple[Path, ...], flag: str) -> tuple[tuple[Path, ...], str]:
    """The heads to load where an engine is to measure what the scorer `name` says: those given, and the head
    of `reward:NAME_OR_FOLDER` beside them; and that head's name, "" for other scorers. Raises as
    reward_folder."""
    kind, rest = split_scorer(name, flag) if name else ("", "")
    if kind != "reward":
        return heads, ""
    folder = reward_folder(rest, heads, flag)
    is_given = folder.resolve() in [head.resolve() for head in heads]
    return heads if is_given else (*heads, folder), load_manifest(folder).name


def _is_plain(name: str) -> bool:
    return name not in ("", ".", "..") and "/" not in name


def _reward(name: str, context: ScorerContext) -> Scorer:
    from trimtab.guidance.policy import load_policy  # noqa: PLC0415 (heavy)
    from trimtab.server.scoring.reward_part import RewardPartScorer  # noqa: PLC0415 (heavy)

    folder = reward_folder(name, context.heads, context.flag)
    policy = context.policy or load_policy(context.model, device=context.device)
    return RewardPartScorer(policy, folder, context.rows)


def _function(name: str, context: ScorerContext) -> Scorer:
    function = load_function(name, context.flag)
    calling = calling_of(function)
    if calling.style == "batch":
        return BatchFunctionScorer(function, calling, name)
    if calling.style == "reply":
        return FunctionScorer(function)
    from trimtab.server.scoring.token_texts import TokenTexts, load_tokenizer  # noqa: PLC0415 (heavy)

    return FunctionScorer(function, TokenTexts(load_tokenizer(context.model), context.rows))


def _model(name: str, context: ScorerContext) -> Scorer:
    from trimtab.server.scoring.classifier import ClassifierScorer  # noqa: PLC0415 (heavy)

    path, label = split_label(name)
    return ClassifierScorer(path, label, policy=context.model, device=context.device)


def split_label(name: str) -> tuple[str, str]:
    """PATH or PATH:LABEL as a path and a label, which may be "". A folder may have a colon in its name."""
    path, colon, label = name.rpartition(":")
    return (path, label) if colon and path and not Path(name).exists() else (name, "")


def _judge(url: str, context: ScorerContext) -> Scorer:
    from trimtab.server.scoring.judge import JudgeScorer  # noqa: PLC0415 (asks over HTTP: not needed by others)

    config = replace(context.judge, judge_url=url or context.judge.judge_url)
    return JudgeScorer(config, AnswerFile(context.answers), context.rubric)


SCORERS: Mapping[str, Callable[[str, ScorerContext], Scorer]] = {
    "reward": _reward,
    "function": _function,
    "model": _model,
    "judge": _judge,
}
