"""`trimtab heads rescale`: the scale of a head that is there, fitted anew."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import tyro
from rich.console import Console

from trimtab.guidance.data.options import RowLimits
from trimtab.server.commands.row_accounts import show_accounts


@dataclass(frozen=True, kw_only=True)
class RescaleConfig:
    """Fits a head's scale, so that strength 1 spends 0.02 nats a token: for heads that were trained before
    that was the unit of strength, or whose replies have changed with their prompts. Nothing else is trained.
    Example: trimtab heads rescale heads/kind --model M --rollouts rollouts.parquet.

    head: a head folder, or the name of a bundled head.
    model: `bundled`, or the folder or hub id of the causal LM that the head belongs to.
    rollouts: replies of the model itself, {prompt, completion, token_ids?}, that the head was not trained on.
    out: folder for the head; by default it is changed in place.
    """

    head: tyro.conf.Positional[Path]
    model: str
    rollouts: Path
    out: Path | None = None
    device: str = "auto"
    show_progress: bool = True
    row_options: tyro.conf.OmitArgPrefixes[RowLimits] = field(default_factory=RowLimits)

    def run(self, console: Console) -> None:
        """Raises HeadError, PolicyError or DataError with one line; then nothing was written."""
        show_accounts()
        from trimtab.server.commands.heads.scale_run import rescale  # noqa: PLC0415 (heavy)

        rescale(self)
