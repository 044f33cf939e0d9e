"""Head folders and their manifests as tables for a terminal."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from trimtab.guidance.errors import HeadError, UserError
from trimtab.guidance.heads.manifest import MANIFEST_FILE, Manifest, load_manifest
from trimtab.guidance.heads.verdict import verdicts
from trimtab.server.commands.heads.config import ListConfig, ShowConfig
from trimtab.server.commands.model import bundled_heads, find_head_folder


def show(config: ListConfig | ShowConfig) -> None:
    """Prints the table. Raises UserError or HeadError with one line."""
    if isinstance(config, ListConfig):
        table, broken = heads_table(_find_heads(config.folders))
    else:
        table, broken = head_table(load_manifest(find_head_folder(config.head))), []
    Console().print(table)
    if broken:
        raise HeadError(f"{broken[0]}" + (f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""))


def heads_table(folders: Sequence[Path]) -> tuple[Table, list[HeadError]]:
    """A row per head, and what is wrong with those that cannot be read."""
    table, broken = Table("name", "parts", "model", "rows", "trained on", "folder", title="heads"), []
    for folder in folders:
        try:
            head = load_manifest(folder)
        except HeadError as error:
            broken.append(error)
            continue
        rows = head.rows or "?"
        table.add_row(head.name, _parts(head), head.base_model.name, rows, head.trained_on, str(folder))
    return table, broken


def head_table(head: Manifest) -> Table:
    """A row per part with what it has learned, and one per key of the manifest."""
    table = Table("key", "value", title=f"head {head.name}", show_header=False)
    for part, verdict in verdicts(head.metrics).items():
        table.add_row(f"{part} on held-out rows", str(verdict))
    for key, value in _flatten(dataclasses.asdict(head)):
        table.add_row(key, f"{value:.4g}" if isinstance(value, float) else str(value))
    return table


def _parts(head: Manifest) -> str:
    parts = {"advantage": head.parts.advantage, "value": head.parts.value, "reward": head.parts.reward}
    return ", ".join(f"{name} ({part.form})" for name, part in parts.items() if part is not None)


def _flatten(data: dict[str, object], prefix: str = "") -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    for key, value in data.items():
        if isinstance(value, dict):
            rows += _flatten(value, f"{prefix}{key}.")
        elif value is not None:
            rows.append((prefix + key, value))
    return rows


def _find_heads(folders: Sequence[Path]) -> list[Path]:
    """The folders that are heads, and the heads inside those that are not."""
    found = [] if folders else bundled_heads()
    for folder in folders:
        inside = sorted(path.parent for path in folder.glob(f"*/{MANIFEST_FILE}"))
        if not inside and not (folder / MANIFEST_FILE).is_file():
            raise UserError(f"{folder} is no head folder and holds none; train one with `trimtab train`")
        found += inside or [folder]
    return found
