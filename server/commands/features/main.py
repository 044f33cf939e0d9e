"""`trimtab features`: the policy run once over the replies that heads are to be trained on."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from trimtab.guidance.features.layout import (
    MANIFEST_FILE,
    load_feature_manifest,
)
from trimtab.server.commands.features.config import FeaturesConfig
from trimtab.server.commands.log import show_log
from trimtab.server.flags import parse


def main(prog: str, args: Sequence[str]) -> None:
    """Says how large it will be, and writes it. Raises UserError, DataError or PolicyError with one line."""
    config = parse(FeaturesConfig, prog, args)
    show_log()
    from trimtab.server.commands.features.run import run  # noqa: PLC0415 (heavy; bad flags are told before)

    try:
        run(config)
    except KeyboardInterrupt:
        print(f"\nstopped; {_kept(config.out)}", file=sys.stderr, flush=True)
        raise


def _kept(folder: Path) -> str:
    """What a run that was stopped has left, and how to go on."""
    if not (folder / MANIFEST_FILE).is_file():
        return "nothing was done yet"
    manifest = load_feature_manifest(folder)
    num_read = sum(shard.num_replies for shard in manifest.shards)
    return (
        f"features of {num_read} of {manifest.num_replies} replies are kept in {folder}: give the same "
        "command with --resume to go on"
    )
