"""What the gold task compares: every step as the command line that a user would give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

BY_REPLY = "function:trimtab.server.gold.reward:score"
BY_TOKEN = "function:trimtab.server.gold.reward:score_tokens"
FORMS = ("lowrank", "tied")
REPLY_TOKENS, WINDOW_TOKENS = "200", "16"
TRAIN_PROMPTS, JUDGE_PROMPTS, BEGUN_PROMPTS = "train.jsonl", "judge.jsonl", "begun.jsonl"
LORA_POINTS = "lora/points.json"

Command = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """A command, and what it leaves behind: where that is, the step is done."""

    name: str
    command: Command
    result: str


@dataclass(frozen=True, slots=True)
class Task:
    """model: the policy. folder: holds the prompts and all that the steps make."""

    model: str
    folder: Path
    seed: int = 0

    def at(self, name: str) -> str:
        return str(self.folder / name)

    def steps(self) -> Iterator[Step]:
        """In an order in which each finds what it reads."""
        yield from _rollouts(self)
        yield from _features(self)
        yield from _heads(self)
        yield _lora(self)
        yield from (_evaluation(self, form) for form in FORMS)

    @property
    def common(self) -> Command:
        return ("--model", self.model, "--seed", str(self.seed))


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
    advantage's learning rate, low-rank and tied.
    """

    rows: str
    flags: Command
    pairs: str = ""
    rates: tuple[str, str] = ("1e-3", "1e-3")


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
METHODS: Mapping[str, Method] = {
    "dpo": Method("windows", (*_DPO, "--advantage.tau", "5"), "windows.preference", ("3e-3", "1e-3")),
    "dpo-replies": Method(
        "replies", (*_DPO, "--advantage.tau", "0.3"), "judged.preference", ("3e-3", "1e-3")
    ),
    "mc": Method(
        "replies",
        (
            *(*_Q, "--advantage.loss", "monte_carlo", "--advantage.discount", "0.8"),
            *("--value.discount", "0.8", "--advantage.optimiser.epochs", "4"),
        ),
    ),
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


def _heads(task: Task) -> Iterator[Step]:
    for name, method in METHODS.items():
        for form, rate in zip(FORMS, method.rates, strict=True):
            yield _head(task, name, method, form, rate)


def _head(task: Task, method_name: str, method: Method, form: str, rate: str) -> Step:
    name = f"{method_name}-{form}"
    replies = ("--rollouts", task.at(f"{method.rows}.parquet"), "--features")
    read = (*replies, task.at(f"features/{method.rows}")) if method.rows else ()
    prompts = () if method.rows else ("--prompts", task.at(TRAIN_PROMPTS), "--held-out", "0.05")
    pairs = ("--preferences", task.at(f"{method.pairs}.parquet")) if method.pairs else ()
    return Step(
        name,
        (
            *("train", *task.common, "--name", name, *prompts, *read, *pairs, *method.flags),
            *("--advantage.form", form, "--advantage.rank", "128"),
            *("--advantage.optimiser.learning-rate", rate),
            *("--head-folder", task.at(f"heads/{name}"), "--run-folder", task.at(f"runs/{name}")),
        ),
        f"heads/{name}",
    )


def _lora(task: Task) -> Step:
    return Step(
        "lora",
        (
            *("train", "--lora", *task.common, "--preferences", task.at("windows.preference.parquet")),
            *("--tau", "0.5", "--rank", "16", "--learning-rate", "1e-3", "--batch-size", "64"),
            *("--epochs", "1", "--merge", "--scales", "0.3", "0.6", "1.0", "1.5"),
            *("--measure", task.at(JUDGE_PROMPTS), "--num-prompts", "272", "--num-replies", "2"),
            *("--reply-tokens", REPLY_TOKENS, "--out", task.at("lora")),
        ),
        LORA_POINTS,
    )


def _evaluation(task: Task, form: str) -> Step:
    out = f"evaluation-{form}"
    return Step(
        out,
        (
            *("eval", *task.common, "--heads", *(task.at(f"heads/{name}-{form}") for name in METHODS)),
            *("--prompts", task.at(JUDGE_PROMPTS), "--gold", BY_REPLY, "--max-tokens", REPLY_TOKENS),
            *("--num-replies", "2", "--static-bias", "fit", "--rollouts", task.at("replies.parquet")),
            *("--external", task.at(LORA_POINTS), "--max-num-seqs", "256", "--out", task.at(out)),
        ),
        f"{out}/report.json",
    )
