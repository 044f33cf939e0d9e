"""System prompt of an evaluation: chooses a wording on tuning prompts, and measures what it costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from tqdm.auto import tqdm

from trimtab.guidance.errors import ChatTemplateError, UserError
from trimtab.guidance.evaluation.baselines.system_prompt import (
    Wording,
    WordingTrial,
    load_wordings,
    rank_wordings,
)
from trimtab.guidance.evaluation.curve import Curve
from trimtab.guidance.evaluation.replies import MeasuredReply
from trimtab.guidance.text.message import Message
from trimtab.guidance.text.render import unread
from trimtab.server.commands.eval.bench import Bench, JudgedPrompts, Tuning, gold_of
from trimtab.server.commands.eval.config import EvalConfig
from trimtab.server.engine.engine import Engine

SYSTEM_PROMPT = "system prompt"


@dataclass(frozen=True, slots=True)
class FoundWording:
    """trials: the wordings it was chosen from, the best first."""

    wording: Wording
    trials: tuple[WordingTrial, ...]


def find_system_prompt(config: EvalConfig, tuning: Tuning) -> FoundWording | None:
    """The wording to beat; None where none is asked for.

    Raises DataError for a file that cannot be read; UserError for a policy that reads no system message, a
    wording that does not fit, and several of them without prompts to choose on.
    """
    if config.system_prompts is None:
        return None
    wordings = load_wordings(config.system_prompts)
    if len(wordings) > 1 and config.tuning_prompts is None:
        raise UserError(
            f"{config.system_prompts}: {len(wordings)} system prompts need --tuning-prompts to choose one on"
        )
    _check_read(tuning.judged)
    judged = [_with_wording(tuning.engine, tuning.judged, wording, config.max_tokens) for wording in wordings]
    added = [_tokens_added(tuning.judged, one) for one in judged]
    trials = [WordingTrial(w.name, w.text, num) for w, num in zip(wordings, added, strict=True)]
    if len(wordings) > 1:
        bench, rows = tuning.bench, zip(trials, wordings, strict=True)
        bar = tqdm(rows, total=len(trials), desc="system prompts: wordings", unit="wording")
        trials = [_tried(bench, trial, wording) for trial, wording in bar]
    ranked = rank_wordings(trials)
    chosen = next(wording for wording in wordings if wording.name == ranked[0].name)
    return FoundWording(chosen, tuple(ranked))


def system_prompt_curve(bench: Bench, wording: Wording) -> Curve:
    """One point: a wording has no strength."""
    judged, replies = _sample(bench, wording, f"system prompt {wording.name}")
    sampled = judged.encode(replies)
    measured = bench.measured_in_another_state(replies, lambda here: bench.features.get(sampled[here]))
    return Curve(SYSTEM_PROMPT, "system_prompt", "wording", (bench.point(measured, 1.0),))


def behind_wording(bench: Bench, wording: Wording) -> Callable[[int], tuple[int, ...]]:
    """The token ids of each prompt with the wording before it, by its number."""
    judged = _with_wording(bench.engine, bench.judged, wording, bench.config.max_tokens)
    return {one.number: one.token_ids for one in judged.encoded}.__getitem__


def _tried(bench: Bench, trial: WordingTrial, wording: Wording) -> WordingTrial:
    _, replies = _sample(bench, wording, "", bench.config.tuning_replies)
    return replace(trial, score=gold_of(bench, bench.point(replies, 1.0)))


def _sample(
    bench: Bench, wording: Wording, label: str, num_replies: int | None = None
) -> tuple[JudgedPrompts, list[MeasuredReply]]:
    judged = _with_wording(bench.engine, bench.judged, wording, bench.config.max_tokens)
    num = num_replies or bench.plan.num_replies
    return judged, bench.sample(label, judged.encoded, num_replies=num)


def _with_wording(engine: Engine, judged: JudgedPrompts, wording: Wording, max_tokens: int) -> JudgedPrompts:
    """The same prompts with the wording before them. Raises UserError where one does not fit any more."""
    encoded = []
    for one in judged.encoded:
        prompt = wording.before(one.prompt)
        encoded.append(replace(one, prompt=prompt, token_ids=judged.encoder.prompt_ids(prompt)))
    room = engine.info.max_model_len - max_tokens
    long = [one.number for one in encoded if len(one.token_ids) > room]
    if long:
        raise UserError(
            f"--system-prompts: with {wording.name}, {len(long)} prompts and {max_tokens} tokens of reply do "
            f"not fit the context, first row {long[0]}: shorten it, or lower --max-tokens"
        )
    return replace(judged, encoded=tuple(encoded))


def _tokens_added(plain: JudgedPrompts, judged: JudgedPrompts) -> float:
    pairs = zip(plain.encoded, judged.encoded, strict=True)
    return fmean(len(longer.token_ids) - len(one.token_ids) for one, longer in pairs)


def _check_read(judged: JudgedPrompts) -> None:
    encoder = judged.encoder
    if encoder.form == "text":
        raise UserError(
            "--system-prompts: the prompts are texts, completed as they are, and no chats with a system "
            "message: name a policy with a chat template, or leave --rows text out"
        )
    turns: Sequence[dict[str, object]] = [
        message.turn() for message in (Message("system", "Be brief."), Message("user", "Hello."))
    ]
    try:
        is_read = not unread(encoder.tokenizer, turns)
        reason = "it leaves it out"
    except ChatTemplateError as error:
        is_read, reason = False, str(error)
    if not is_read:
        raise UserError(
            f"--system-prompts: the policy's chat template reads no system message ({reason}): leave "
            "--system-prompts out"
        )
