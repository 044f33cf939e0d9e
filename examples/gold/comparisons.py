"""Comparisons of the gold task: LoRA tuned on other prompts, and heads beside all that they must beat."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean

from examples.gold.iterated import LONG, REMEMBERING, ROUNDS, iterated_steps
from examples.gold.many import many_steps
from examples.gold.recipes import ABLATIONS, METHODS, seeded, training_steps
from examples.gold.steered import steered_steps
from examples.gold.task import (
    BY_REPLY,
    CHOSEN_LORA,
    CLAIMED,
    FORMS,
    JUDGE_PROMPTS,
    LORA_CHOICE,
    LORA_POINTS,
    REFERENCE,
    REPLY_TOKENS,
    SEEDS,
    TUNING_PROMPTS,
    Command,
    Step,
    Task,
)
from trimtab.guidance.errors import DataError

LORA_SETTINGS: Mapping[str, tuple[str, str]] = {
    "lr1e-3-tau0.5": ("1e-3", "0.5"),
    "lr3e-4-tau0.5": ("3e-4", "0.5"),
    "lr3e-3-tau0.5": ("3e-3", "0.5"),
    "lr1e-3-tau0.1": ("1e-3", "0.1"),
    "lr1e-3-tau2": ("1e-3", "2"),
}
"""Learning rate and τ by the setting's name, which is its folder's and, after "LoRA ", its curve's. Each sees
a quarter of the pairs: a step of LoRA runs the whole policy, and all of them would take hours."""


def _lora(task: Task) -> Iterator[Step]:
    """Every setting on the tuning prompts; then the one that they choose on those that judge."""
    tuning = ("--measure", task.at(TUNING_PROMPTS), "--num-replies", "6")
    for name, (rate, tau) in LORA_SETTINGS.items():
        trained = (
            *("--preferences", task.at("windows.preference.parquet"), "--tau", tau, "--rank", "16"),
            *("--learning-rate", rate, "--batch-size", "16", "--epochs", "0.25"),
            "--no-precompute-reference",
        )
        measured = ("--label", f"LoRA {name}", "--out", task.at(f"lora/{name}"))
        yield Step(
            f"lora/{name}", _lora_command(task, trained, (*tuning, *measured)), f"lora/{name}/points.json"
        )
    yield Step(
        "evaluation-lora",
        (
            *("eval", *task.common, "--prompts", task.at(TUNING_PROMPTS), "--gold", BY_REPLY),
            *("--max-tokens", REPLY_TOKENS, "--num-replies", "6", "--best-of", "1", "2", "4", "8", "16"),
            *("--external", *(task.at(f"lora/{name}/points.json") for name in LORA_SETTINGS)),
            *("--max-num-seqs", "256", "--out", task.at("evaluation-lora")),
        ),
        LORA_CHOICE,
    )
    judged = ("--measure", task.at(JUDGE_PROMPTS), "--num-replies", "8", "--label", "LoRA DPO, tuned")
    adapter = ("--adapter", task.at(f"lora/{CHOSEN_LORA}/adapter"))
    yield Step("lora", _lora_command(task, adapter, (*judged, "--out", task.at("lora/best"))), LORA_POINTS)


def _lora_command(task: Task, trained: Command, measured: Command) -> Command:
    return (
        *("train", "--lora", *task.common, *trained),
        *("--merge", "--scales", "0.25", "0.5", "1.0", "1.5", "2.5"),
        *(*measured, "--reply-tokens", REPLY_TOKENS),
    )


def _claims(task: Task) -> Step:
    """What the README claims: heads by three training seeds, and what they must beat, each at its best."""
    groups = {name: [seeded(name, seed) for seed in SEEDS] for name in CLAIMED}
    out = "evaluation-claims"
    return Step(
        out,
        (
            *("eval", *task.common, *task.heads(name for names in groups.values() for name in names)),
            *("--group", *(f"{name}={','.join(names)}" for name, names in groups.items())),
            *_judged_by_gold(task, "6"),
            *("--best-of", "1", "2", "4", "8", "16", "32", "64", "--static-bias", "fit"),
            *("--rollouts", task.at("replies.parquet"), "--bias-discount", "0", "0.5", "0.8", "0.9", "1"),
            *("--bias-shrinkage", "5", "20", "100", "--bias-tokens", "16", "64", "256", "1024", "all"),
            *("--tuning-prompts", task.at(TUNING_PROMPTS), "--tuning-replies", "1"),
            *("--external", task.at(LORA_POINTS)),
            *("--out", task.at(out)),
        ),
        f"{out}/report.json",
    )


def _ablation_evaluation(task: Task) -> Step:
    """One thing changed at a time; other seeds of the reference show how much a difference of nothing is."""
    names = [*(seeded(REFERENCE, seed) for seed in SEEDS), "mc-tied", *ABLATIONS]
    out = "evaluation-ablation"
    flags = (*task.heads(names), "--baseline", REFERENCE, *_judged_by_gold(task, "4"), *_tuned_bias(task))
    return Step(out, ("eval", *task.common, *flags, "--out", task.at(out)), f"{out}/report.json")


def _iterated_evaluation(task: Task) -> Step:
    """Heads that learned from what heads wrote, beside the reference, from three training seeds each."""
    groups = {
        name: [seeded(name, seed) for seed in SEEDS] for name in (REFERENCE, ROUNDS[-1], REMEMBERING, LONG)
    }
    out = "evaluation-iterated"
    return Step(
        out,
        (
            *(
                "eval",
                *task.common,
                *task.heads([ROUNDS[0], *(n for names in groups.values() for n in names)]),
            ),
            *("--group", *(f"{name}={','.join(names)}" for name, names in groups.items())),
            *(*_judged_by_gold(task, "6"), *_tuned_bias(task), "--external", task.at(LORA_POINTS)),
            *("--best-of", "1", "2", "4", "8", "16", "32", "64", "--out", task.at(out)),
        ),
        f"{out}/report.json",
    )


def _evaluation(task: Task, form: str) -> Step:
    """Every method, one training seed each."""
    out = f"evaluation-{form}"
    flags = (
        *task.heads(f"{name}-{form}" for name in METHODS),
        *_judged_by_gold(task, "4"),
        *_tuned_bias(task),
    )
    external = ("--external", task.at(LORA_POINTS))
    return Step(out, ("eval", *task.common, *flags, *external, "--out", task.at(out)), f"{out}/report.json")


def _judged_by_gold(task: Task, num_replies: str) -> Command:
    return (
        *("--prompts", task.at(JUDGE_PROMPTS), "--gold", BY_REPLY, "--max-tokens", REPLY_TOKENS),
        *("--num-replies", num_replies, "--max-num-seqs", "256", "--at-kl", "1", "2", "4"),
    )


def _tuned_bias(task: Task) -> Command:
    return ("--static-bias", task.at("evaluation-claims/static_bias.json"))


def all_steps(task: Task) -> Iterator[Step]:
    """Of the whole task, in an order in which each finds what it reads."""
    yield from training_steps(task)
    yield from _lora(task)
    yield _claims(task)
    yield _ablation_evaluation(task)
    yield from iterated_steps(task)
    yield _iterated_evaluation(task)
    yield from many_steps(task)
    yield from steered_steps(task)
    yield from (_evaluation(task, form) for form in FORMS)


LABEL = "LoRA "


def chosen_lora(report: Path) -> str:
    """Of the settings that reach most of the prices at which curves were compared, the one with the highest
    gold score, averaged over these prices.

    By hand: a reaches 1 and 2 nats with 3 and 4, b with 2 and 6, c only 1 with 9: b.

    Raises DataError where the report is not there, or none of its curves is LoRA's.
    """
    try:
        frontier = json.loads(report.read_text(encoding="utf-8"))["frontier"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{report} tells of no settings of LoRA ({error}): run step evaluation-lora"
        ) from error
    scores: defaultdict[str, list[float]] = defaultdict(list)
    for row in frontier["at_kl"]:
        if row["curve"].startswith(LABEL) and row["score"] == frontier["gold"][0]:
            scores[row["curve"].removeprefix(LABEL)].append(row["estimate"]["mean"])
    if not scores:
        raise DataError(f"{report}: no setting of LoRA reaches a price at which curves are compared")
    return max(scores, key=lambda name: (len(scores[name]), fmean(scores[name])))
