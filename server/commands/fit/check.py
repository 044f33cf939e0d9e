"""Checks of `trimtab fit` before any work: rewards tried on a made-up reply, files, folders and room."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

from trimtab.guidance.data.rollouts import RolloutRow
from trimtab.guidance.errors import UserError
from trimtab.guidance.heads.manifest import TENSORS_FILE
from trimtab.guidance.text.message import Message
from trimtab.guidance.training.methods import METHODS
from trimtab.server.commands.fit.config import PREFERENCES, Credit, FitConfig
from trimtab.server.commands.rollouts.config import read_rubric
from trimtab.server.judging.answers import AnswerFile
from trimtab.server.judging.questions import RUBRIC
from trimtab.server.scoring.choose import (
    ScorerContext,
    check_scorer,
    make_scorer,
    reward_folder,
    split_scorer,
)
from trimtab.server.scoring.functions import BatchFunctionScorer, FunctionScorer, calling_of, load_function
from trimtab.server.scoring.scorer import Score

MADE_UP = ("I", " like", " this", " small", " garden", ".", "")
"""Tokens of a reply that nobody has given, on which a reward is tried."""


def check_before_work(config: FitConfig) -> None:
    """Raises UserError, HeadError or DataError with one line for what would fail later."""
    _check_loss(config)
    for name in ("rollouts", "features", "pair_features"):
        path = getattr(config, name)
        if path is not None and not path.exists():
            raise UserError(f"--{name.replace('_', '-')} {path}: no such file or folder")
    if config.rubric is not None:
        read_rubric(config.rubric)
    for flag, name in (("--reward", config.scorer), ("--gold", config.gold)):
        _check_scorer(config, flag, name)
    for folder in (config.run, config.head):
        _check_writable(folder)
    _check_head_folder(config)


def credit_of(reward: str, window: int) -> Credit:
    """What tokens are credited by. A function that cannot be had is told of later."""
    kind, _, rest = reward.partition(":")
    if kind == PREFERENCES:
        return "preferences"
    if kind == "function":
        try:
            score = try_function(rest, "--reward")
        except UserError:
            return "windows"
        if score.token_rewards is not None:
            return "tokens"
    return "replies" if kind == "judge" or not window else "windows"


def try_function(name: str, flag: str) -> Score:
    """What a function says of a made-up reply. Columns of the prompt file are not known yet: a function that
    needs some is not called. Raises UserError where it cannot be had or returns what is no reward."""
    function = load_function(name, flag)
    calling = calling_of(function)
    if calling.columns.needed:
        return Score(None)
    row = made_up_row(is_chat=False)
    if calling.style == "batch":
        (score,) = BatchFunctionScorer(function, calling, name).score([row])
    else:
        score = FunctionScorer(function, lambda _: list(MADE_UP)).score([row])[0]
    if score.problem:
        raise UserError(f"{flag} {name}, tried on the reply {row.completion!r}: {score.problem}")
    return score


def made_up_row(*, is_chat: bool) -> RolloutRow:
    prompt = "What do you like?"
    return RolloutRow(
        prompt=(Message("user", prompt),) if is_chat else prompt,
        completion="".join(MADE_UP),
        token_ids=tuple(range(len(MADE_UP))),
        is_cut=False,
        prompt_id=0,
        sample=0,
        seed=0,
        kl=0.0,
        strength=0.0,
    )


def _check_scorer(config: FitConfig, flag: str, name: str) -> None:
    if not name:
        return
    check_scorer(name, flag)
    kind, rest = split_scorer(name, flag)
    if kind == "function" and flag == "--reward":
        try_function(rest, flag)
    elif kind == "reward":
        reward_folder(rest, (), flag)
    elif kind == "model":
        _try_model(config, flag, name)
    elif kind == "judge":
        _ask(config, flag, rest)


def _try_model(config: FitConfig, flag: str, name: str) -> None:
    """Loads the classifier and has it score a made-up reply."""
    context = ScorerContext(
        config.engine.model, (), config.judge, Path(os.devnull), device=config.engine.device
    )
    (score,) = make_scorer(name, replace(context, flag=flag)).score([made_up_row(is_chat=False)])
    if score.problem:
        raise UserError(f"{flag} {name}, tried on a made-up reply: {score.problem}")


def _ask(config: FitConfig, flag: str, url: str) -> None:
    """Has the judge rate a made-up reply; its answer is kept nowhere."""
    from trimtab.server.scoring.judge import JudgeScorer  # noqa: PLC0415 (asks over HTTP)

    asked = replace(config.judge, judge_url=url or config.judge.judge_url, max_failures=1.0)
    rubric = RUBRIC if config.rubric is None else read_rubric(config.rubric)
    (score,) = JudgeScorer(asked, AnswerFile(Path(os.devnull)), rubric).score([made_up_row(is_chat=True)])
    if score.problem:
        raise UserError(f"{flag} {asked.judge_url} does not rate a made-up reply: {score.problem}")


def _check_loss(config: FitConfig) -> None:
    wanted = "pairs" if config.kind == PREFERENCES else "rollouts"
    loss = config.advantage.loss
    if METHODS["advantage"][loss].rows != wanted:
        names = [name for name, method in METHODS["advantage"].items() if method.rows == wanted]
        source = "preferences" if wanted == "pairs" else "the rewards of sampled replies"
        raise UserError(
            f"advantage.loss={loss} does not learn from {source}, which --reward names: give one of "
            f"{', '.join(names)}, or use `trimtab train`"
        )


def _check_writable(folder: Path) -> None:
    there = _nearest(folder)
    if not there.is_dir():
        raise UserError(f"{folder}: {there} is a file: name another folder")
    if not os.access(there, os.W_OK):
        raise UserError(f"{folder} cannot be written: name another folder")


def trained_head(config: FitConfig) -> Path:
    """Where the head lies until it has been judged."""
    return config.run / "head"


def is_complete(config: FitConfig) -> bool:
    """Whether the head's folder holds the head that this run has made."""
    places = [folder / TENSORS_FILE for folder in (config.head, trained_head(config))]
    return all(path.is_file() for path in places) and places[0].read_bytes() == places[1].read_bytes()


def _check_head_folder(config: FitConfig) -> None:
    folder = config.head
    if folder.exists() and any(folder.iterdir()) and not is_complete(config):
        raise UserError(
            f"{folder} holds something that this run has not made: name another --head-folder, or remove it"
        )


def check_room(folder: Path, num_bytes: int) -> None:
    """Raises UserError where the disk has less than that free."""
    free = shutil.disk_usage(_nearest(folder)).free
    if free < num_bytes:
        raise UserError(
            f"{folder} needs up to {num_bytes / 1e9:.2f} GB and the disk has {free / 1e9:.2f} GB free: make "
            "room, name another --run-folder, or give fewer --num-replies or --max-tokens"
        )


def _nearest(folder: Path) -> Path:
    """The folder itself, or the first above it that is there."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
