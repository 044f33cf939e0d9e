"""`trimtab heads export-reward` and `import-reward`: a reward part as a classification model, and back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

from trimtab.guidance.data.options import RowLimits
from trimtab.guidance.heads.manifest import check_name
from trimtab.server.commands.row_accounts import show_accounts


@dataclass(frozen=True, kw_only=True)
class ExportRewardConfig:
    """Writes a head's linear reward part as a transformers …ForSequenceClassification with one label: the
    model's own backbone under one score layer.
    Example: trimtab heads export-reward runs/kind --model M --out exported.

    head: a head folder, or the name of a bundled head.
    model: `bundled`, or the folder or hub id of the causal LM that the head belongs to.
    out: folder for the model; it must be empty, or not be there.
    dtype: of the backbone's weights; auto is that of the causal LM's files.
    """

    head: tyro.conf.Positional[Path]
    model: str
    out: Path
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"

    def run(self, console: Console) -> None:
        """Raises HeadError or PolicyError with one line; then nothing was written."""
        from trimtab.server.commands.heads.reward_run import export  # noqa: PLC0415 (heavy)

        export(self)


@dataclass(frozen=True, kw_only=True)
class ImportRewardConfig:
    """Makes a head with a reward part of a transformers …ForSequenceClassification with one label, whose
    backbone must be the model's own: its score layer was trained over the frozen backbone.
    Example: trimtab heads import-reward rm --model M --name kind --out heads/kind --rollouts r.parquet.

    source: folder or hub id of the classification model; safetensors only.
    model: `bundled`, or the folder or hub id of the causal LM that the head is to measure.
    name: of the head.
    out: the head's folder.
    rollouts: replies of the model itself, {prompt, completion, token_ids?}: reward_mean and reward_std are
    fitted on them. Without, they are what the source's config says, or 0 and 1.
    trained_on: one line for the manifest; by default it names the source.
    """

    source: tyro.conf.Positional[str]
    model: str
    name: str
    out: Path
    rollouts: Path | None = None
    trained_on: str = ""
    device: str = "auto"
    show_progress: bool = True
    row_options: tyro.conf.OmitArgPrefixes[RowLimits] = field(default_factory=RowLimits)

    def __post_init__(self) -> None:
        check_name(self.name)

    def run(self, console: Console) -> None:
        """Raises HeadError, PolicyError or DataError with one line; then nothing was written."""
        show_accounts()
        from trimtab.server.commands.heads.reward_run import import_  # noqa: PLC0415 (heavy)

        import_(self)
