"""`trimtab heads`: what head folders hold, and heads to and from others."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import tyro
from rich.console import Console
from rich.table import Table

from trimtab.guidance.errors import UsageError, UserError
from trimtab.guidance.heads.manifest import MANIFEST_FILE, Manifest, load_manifest
from trimtab.guidance.heads.verdict import verdicts
from trimtab.server.commands.heads.reward import ExportRewardConfig, ImportRewardConfig
from trimtab.server.commands.heads.scale import RescaleConfig
from trimtab.server.commands.heads.share import PullConfig, PushConfig
from trimtab.server.commands.model import bundled_heads, find_head_folder
from trimtab.server.flags import parse


@dataclass(frozen=True)
class ListConfig:
    """Lists head folders: their parts, the model that each belongs to, and whether it was trained on chats or
    on texts (? where its manifest does not say).

    folders: head folders, or folders of them; the bundled heads when left out.
    """

    folders: tyro.conf.Positional[tuple[Path, ...]] = ()

    def run(self, console: Console) -> None:
        console.print(heads_table(_find_heads(self.folders)))


@dataclass(frozen=True)
class ShowConfig:
    """Shows everything that one head's manifest says.

    head: a head folder, or the name of a bundled head.
    """

    head: tyro.conf.Positional[Path]

    def run(self, console: Console) -> None:
        console.print(head_table(load_manifest(find_head_folder(self.head))))


class Action(Protocol):
    def run(self, console: Console) -> None: ...


ACTIONS: dict[str, type[Action]] = {
    "list": ListConfig,
    "show": ShowConfig,
    "push": PushConfig,
    "pull": PullConfig,
    "export-reward": ExportRewardConfig,
    "import-reward": ImportRewardConfig,
    "rescale": RescaleConfig,
}
USAGE = """\
usage: trimtab heads list [FOLDER ...]    lists head folders; without one, the bundled heads
       trimtab heads show HEAD            shows one: a folder, or the name of a bundled head
       trimtab heads push HEAD PLACE      publishes one with a card, to the hub (user/name) or a folder
       trimtab heads pull PLACE FOLDER    fetches a published one, and makes sure that it is whole
       trimtab heads export-reward HEAD   writes its reward as a transformers …ForSequenceClassification
       trimtab heads import-reward MODEL  makes a head with a reward of such a model
       trimtab heads rescale HEAD         sets its scale anew, so that a unit of strength costs what it should

`trimtab heads push --help` and so on list the options of each.
"""


def main(prog: str, args: Sequence[str]) -> None:
    """Does one of ACTIONS. Raises UserError, HeadError, PolicyError or DataError with one line."""
    if args and args[0] in ("-h", "--help"):
        print(USAGE, end="")
        return
    if not args or args[0] not in ACTIONS:
        raise UsageError(f"say what to do with heads: {', '.join(ACTIONS)}")
    parse(ACTIONS[args[0]], f"{prog} {args[0]}", args[1:]).run(Console())


def heads_table(folders: Sequence[Path]) -> Table:
    """A row per head. Raises HeadError for a folder that is none."""
    table = Table("name", "parts", "model", "rows", "trained on", "folder", title="heads")
    for folder in folders:
        head = load_manifest(folder)
        rows = head.rows or "?"
        table.add_row(head.name, _parts(head), head.base_model.name, rows, head.trained_on, str(folder))
    return table


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
