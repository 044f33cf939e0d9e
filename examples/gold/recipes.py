"""Recipes of the gold task: replies, features, heads by every method, seeds of the claimed, an ablation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from examples.gold.task import (
    BEGUN_PROMPTS,
    BY_REPLY,
    BY_TOKEN,
    CLAIMED,
    FORMS,
    REFERENCE,
    REPLY_TOKENS,
    SEEDS,
    TRAIN_PROMPTS,
    WINDOW_TOKENS,
    Command,
    Step,
    Task,
)


def _rollouts(task: Task) -> Iterator[Step]:
    """Whole replies, with a reward for every token and with one; and windows, short continuations of what the
    policy has begun, with one reward each, whose cause lies at most 16 tokens back."""
    sampled = ("rollouts", *task.common, "--max-num-seqs", "256")
    yield Step(
        "replies",
        (
            *(*sampled, "--prompts", task.at(TRAIN_PROMPTS), "--num-replies", "16"),
            *("--max-tokens", REPLY_TOKENS, "--score", BY_TOKEN, "--out", task.at("replies.parquet")),
        ),
        "replies.parquet",
    )
    yield Step(
        "judged",
        (
            *("rollouts", *task.common, "--rescore", task.at("replies.parquet"), "--score", BY_REPLY),
            *("--pairs", "best-worst", "--out", task.at("judged.parquet")),
        ),
        "judged.preference.parquet",
    )
    yield Step(
        "windows",
        (
            *(*sampled, "--prompts", task.at(BEGUN_PROMPTS), "--num-replies", "8"),
            *("--max-tokens", WINDOW_TOKENS, "--score", BY_REPLY, "--prompts-per-part", "512"),
            *("--pairs", "best-worst", "--min-margin", "1", "--out", task.at("windows.parquet")),
        ),
        "windows.preference.parquet",
    )


def _features(task: Task) -> Iterator[Step]:
    for rows in ("replies", "windows"):
        command = ("features", *task.common, "--rollouts", task.at(f"{rows}.parquet"), "--positions", "all")
        folder = f"features/{rows}"
        yield Step(folder, (*command, "--out", task.at(folder)), folder)


@dataclass(frozen=True, slots=True)
class Method:
    """How a head learns. rows: from which replies; "" for those that it samples itself.

    flags: what it takes beside them. pairs: the preferences among them, or "" for rewards. rates: the
    advantage's learning rate, low-rank and tied. features: of the same replies, where they bear another name.
    """

    rows: str
    flags: Command
    pairs: str = ""
    rates: tuple[str, str] = ("1e-3", "1e-3")
    features: str = ""


_DPO = (
    *("--parts", "advantage", "--advantage.loss", "dpo", "--advantage.optimiser.batch-size", "64"),
    *("--advantage.optimiser.epochs", "4"),
)
_Q = ("--parts", "value", "advantage")
_MANY = ("--value.optimiser.batch-size", "256", "--advantage.optimiser.batch-size", "256")
_ON_POLICY = (
    *("--parts", "advantage", "--on-policy.score", BY_TOKEN, "--on-policy.max-tokens", REPLY_TOKENS),
    *("--on-policy.max-num-seqs", "256", "--advantage.tau", "0.8", "--advantage.discount", "0.9"),
    *("--advantage.optimiser.batch-size", "16", "--advantage.optimiser.epochs", "0.96"),
    *("--on-policy.num-prompts", "64"),
)


def _monte_carlo(discount: str) -> Command:
    return (
        *(*_Q, "--advantage.loss", "monte_carlo", "--advantage.discount", discount),
        *("--value.discount", discount, "--advantage.optimiser.epochs", "4"),
    )


METHODS: Mapping[str, Method] = {
    "dpo": Method("windows", (*_DPO, "--advantage.tau", "5"), "windows.preference", ("3e-3", "1e-3")),
    "dpo-replies": Method(
        "replies", (*_DPO, "--advantage.tau", "0.3"), "judged.preference", ("3e-3", "1e-3")
    ),
    "mc": Method("replies", _monte_carlo("0.8")),
    "mc-windows": Method("windows", (*_Q, *_MANY, "--advantage.loss", "monte_carlo")),
    "cdq": Method(
        "replies",
        (
            *(*_Q, "--advantage.loss", "cd_q", "--advantage.discount", "0.8", "--value.loss", "td_lambda"),
            *("--value.discount", "0.8", "--advantage.optimiser.epochs", "1"),
        ),
    ),
    "distil": Method(
        "windows",
        (
            *(*_Q, *_MANY, "--advantage.loss", "distil", "--advantage.top-k", "64"),
            *("--advantage.num-prefixes", "1"),
        ),
    ),
    "ppo": Method("", (*_ON_POLICY, "--advantage.loss", "ppo"), rates=("3e-3", "1e-3")),
    "rloo": Method("", (*_ON_POLICY, "--advantage.loss", "rloo"), rates=("3e-3", "1e-3")),
}


@dataclass(frozen=True, slots=True)
class Ablation:
    """REFERENCE with one thing changed; `mc-tied`, among the heads, is the one with another form."""

    method: Method
    rank: str = "128"


ABLATIONS: Mapping[str, Ablation] = {
    **{
        f"{REFERENCE}-gamma{g}": Ablation(Method("replies", _monte_carlo(g)))
        for g in ("0", "0.5", "0.9", "1")
    },
    # Compare with gamma1: the same sum of the same rewards, but told once, at the end.
    f"{REFERENCE}-whole": Ablation(Method("judged", _monte_carlo("1"), features="replies")),
    f"{REFERENCE}-rank32": Ablation(METHODS["mc"], rank="32"),
    f"{REFERENCE}-rank512": Ablation(METHODS["mc"], rank="512"),
}


def _heads(task: Task) -> Iterator[Step]:
    for name, method in METHODS.items():
        for form, rate in zip(FORMS, method.rates, strict=True):
            yield _head(task, f"{name}-{form}", method, form, rate)


def _seeds(task: Task) -> Iterator[Step]:
    """The claimed heads again, from other training seeds and the same rollouts."""
    for claimed in CLAIMED:
        method_name, _, form = claimed.rpartition("-")
        method = METHODS[method_name]
        rate = method.rates[FORMS.index(form)]
        for seed in SEEDS[1:]:
            other = replace(task, seed=task.seed + seed)
            yield _head(other, seeded(claimed, seed), method, form, rate)


def seeded(name: str, seed: int) -> str:
    """The name of a head from one of SEEDS; that of the first is the method's."""
    return f"{name}-seed{seed}" if seed else name


def _ablation(task: Task) -> Iterator[Step]:
    for name, ablation in ABLATIONS.items():
        method = ablation.method
        yield _head(task, name, method, "lowrank", method.rates[0], ablation.rank)


def _head(task: Task, name: str, method: Method, form: str, rate: str, rank: str = "128") -> Step:
    replies = ("--rollouts", task.at(f"{method.rows}.parquet"), "--features")
    read = (*replies, task.at(f"features/{method.features or method.rows}")) if method.rows else ()
    prompts = () if method.rows else ("--prompts", task.at(TRAIN_PROMPTS), "--held-out", "0.05")
    pairs = ("--preferences", task.at(f"{method.pairs}.parquet")) if method.pairs else ()
    return Step(
        name,
        (
            *("train", *task.common, "--name", name, *prompts, *read, *pairs, *method.flags),
            *("--advantage.form", form, "--advantage.rank", rank),
            *("--advantage.optimiser.learning-rate", rate),
            *("--head-folder", task.at(f"heads/{name}"), "--run-folder", task.at(f"runs/{name}")),
        ),
        f"heads/{name}",
    )


def training_steps(task: Task) -> Iterator[Step]:
    """In an order in which each finds what it reads."""
    yield from _rollouts(task)
    yield from _features(task)
    yield from _heads(task)
    yield from _seeds(task)
    yield from _ablation(task)
