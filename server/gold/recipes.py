"""What the gold task compares: every step as the command line that a user would give."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

BY_REPLY = "function:trimtab.server.gold.reward:score"
BY_TOKEN = "function:trimtab.server.gold.reward:score_tokens"
FORMS = ("lowrank", "tied")
REPLY_TOKENS, WINDOW_TOKENS = "200", "16"
TRAIN_PROMPTS, TUNING_PROMPTS, JUDGE_PROMPTS = "train.jsonl", "tuning.jsonl", "judge.jsonl"
BEGUN_PROMPTS = "begun.jsonl"
CHOSEN_LORA = "{chosen}"
"""In a command: the setting of LoRA that the tuning prompts chose, known once they have."""
LORA_CHOICE, LORA_POINTS = "evaluation-lora/report.json", "lora/best/points.json"
CLAIMED = ("mc-lowrank", "mc-windows-lowrank", "ppo-lowrank")
"""Heads that the README claims something of: each trained with SEEDS."""
SEEDS = (0, 1, 2)
REFERENCE = "mc-lowrank"
"""What the ablation changes one thing of at a time."""

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
        yield from _seeds(self)
        yield from _ablation(self)
        yield from _lora(self)
        yield _claims(self)
        yield _ablation_evaluation(self)
        yield from (_evaluation(self, form) for form in FORMS)

    @property
    def common(self) -> Command:
        return ("--model", self.model, "--seed", str(self.seed))

    def heads(self, names: Iterable[str]) -> Command:
        return ("--heads", *(self.at(f"heads/{name}") for name in names))


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


LORA_SETTINGS: Mapping[str, tuple[str, str]] = {
    "lr1e-3-tau0.5": ("1e-3", "0.5"),
    "lr3e-4-tau0.5": ("3e-4", "0.5"),
    "lr3e-3-tau0.5": ("3e-3", "0.5"),
    "lr1e-3-tau0.1": ("1e-3", "0.1"),
    "lr1e-3-tau2": ("1e-3", "2"),
}
"""Learning rate and τ by the setting's name, which is its folder's and, after "LoRA ", its curve's."""


def _lora(task: Task) -> Iterator[Step]:
    """Every setting on the tuning prompts; then the one that they choose on those that judge."""
    tuning = ("--measure", task.at(TUNING_PROMPTS), "--num-replies", "6")
    for name, (rate, tau) in LORA_SETTINGS.items():
        trained = (
            *("--preferences", task.at("windows.preference.parquet"), "--tau", tau, "--rank", "16"),
            *("--learning-rate", rate, "--batch-size", "64", "--epochs", "1"),
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
    judged = ("--measure", task.at(JUDGE_PROMPTS), "--num-replies", "4", "--label", "LoRA DPO, tuned")
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
            *_judged_by_gold(task),
            *("--best-of", "1", "2", "4", "8", "16", "32", "64", "--static-bias", "fit"),
            *("--rollouts", task.at("replies.parquet"), "--bias-discount", "0", "0.5", "0.8", "0.9", "1"),
            *("--bias-shrinkage", "5", "20", "100", "--bias-tokens", "16", "64", "256", "1024", "all"),
            *("--tuning-prompts", task.at(TUNING_PROMPTS), "--external", task.at(LORA_POINTS)),
            *("--out", task.at(out)),
        ),
        f"{out}/report.json",
    )


def _ablation_evaluation(task: Task) -> Step:
    """One thing changed at a time; other seeds of the reference show how much a difference of nothing is."""
    names = [*(seeded(REFERENCE, seed) for seed in SEEDS), "mc-tied", *ABLATIONS]
    out = "evaluation-ablation"
    flags = (*task.heads(names), "--baseline", REFERENCE, *_judged_by_gold(task), *_tuned_bias(task))
    return Step(out, ("eval", *task.common, *flags, "--out", task.at(out)), f"{out}/report.json")


def _evaluation(task: Task, form: str) -> Step:
    """Every method, one training seed each."""
    out = f"evaluation-{form}"
    flags = (*task.heads(f"{name}-{form}" for name in METHODS), *_judged_by_gold(task), *_tuned_bias(task))
    external = ("--external", task.at(LORA_POINTS))
    return Step(out, ("eval", *task.common, *flags, *external, "--out", task.at(out)), f"{out}/report.json")


def _judged_by_gold(task: Task) -> Command:
    return (
        *("--prompts", task.at(JUDGE_PROMPTS), "--gold", BY_REPLY, "--max-tokens", REPLY_TOKENS),
        *("--num-replies", "4", "--max-num-seqs", "256"),
    )


def _tuned_bias(task: Task) -> Command:
    return ("--static-bias", task.at("evaluation-claims/static_bias.json"))
