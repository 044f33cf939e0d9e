"""`trimtab heads push` and `trimtab heads pull`: heads to and from folders and the hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import tyro
from rich.console import Console

from trimtab.guidance.errors import UserError

if TYPE_CHECKING:
    from trimtab.guidance.heads.manifest import Manifest
    from trimtab.guidance.publish.judgement import Judgement


@dataclass(frozen=True)
class PushConfig:
    """Publishes a head with a card, which is written from its manifest: to a folder, or to a repository of
    the hub, which is made where there is none. A head that is there already is replaced, with its card.
    Example: trimtab heads push runs/kind user/kind --report runs/eval --license mit.

    head: a head folder, or the name of a bundled head.
    destination: a repository of the hub, user/name; or a folder, where it exists or begins with . / or ~
    to_folder: the destination is a folder, whatever it looks like.
    report: a folder that `trimtab eval` wrote, which judges this head: tables and pictures for the card.
    private: makes the repository private; refuses one that is public.
    message: of the commit.
    license: for the card, as the hub spells it; by default the card says nothing of one.
    base_model: the policy's hub id, for the card; by default its name in the manifest.
    datasets: hub ids of what the head was trained on, for the card.
    """

    head: tyro.conf.Positional[Path]
    destination: tyro.conf.Positional[str]
    to_folder: bool = False
    report: Path | None = None
    private: bool = False
    message: str = ""
    license: str | None = None
    base_model: str | None = None
    datasets: tuple[str, ...] = ()

    def run(self, console: Console) -> None:
        """Raises HeadError or UserError with one line; then nothing was replaced."""
        from trimtab.server.commands.model import find_head_folder  # noqa: PLC0415 (which imports this)

        _push(self, find_head_folder(self.head))


@dataclass(frozen=True)
class PullConfig:
    """Fetches a published head, makes sure that it is whole, and puts it into a folder. Only a head's own
    files are fetched.
    Example: trimtab heads pull user/kind heads/kind, and then trimtab serve --model M --heads heads/kind.

    source: a repository of the hub, user/name, or a folder.
    destination: the head's folder; an older head there is replaced, and nothing else is.
    revision: branch, tag or commit of the repository.
    """

    source: tyro.conf.Positional[str]
    destination: tyro.conf.Positional[Path]
    revision: str | None = None

    def run(self, console: Console) -> None:
        """Raises HeadError or UserError with one line; then nothing was replaced."""
        from trimtab.guidance.publish.package import (  # noqa: PLC0415 (heavy; bad flags are told before)
            check_replaceable,
            copy_published,
            verify,
            write_package,
        )

        destination = self.destination.expanduser()
        check_replaceable(destination)
        folder = _source(self.source, self.revision)
        head = verify(folder, self.source)
        if folder.resolve() == destination.resolve():
            raise UserError(f"{self.source} is already {destination}: name another folder")
        write_package(destination, partial(copy_published, folder))
        print(f"{self.source} is in {destination}: {_told(head)}")
        print(f"serve it with its model: trimtab serve --model … --heads {destination}")


def _source(source: str, revision: str | None) -> Path:
    from trimtab.guidance.publish.hub import fetch_head, is_hub_id  # noqa: PLC0415 (heavy)

    if is_hub_id(source):
        return fetch_head(source, revision)
    if revision is not None:
        raise UserError(f"--revision is of a repository, and {source} is a folder: leave it out")
    return Path(source).expanduser()


def _push(config: PushConfig, folder: Path) -> None:
    from trimtab.guidance.publish.hub import is_hub_id, push_to_hub  # noqa: PLC0415 (heavy)
    from trimtab.guidance.publish.judgement import read_judgement  # noqa: PLC0415
    from trimtab.guidance.publish.package import verify, write_package  # noqa: PLC0415

    is_repository = not config.to_folder and is_hub_id(config.destination)
    _check(config, is_repository)
    head = verify(folder, str(folder))
    judgement = None if config.report is None else read_judgement(config.report, head.name)
    fill = partial(_fill, config, is_repository, head, folder, judgement)
    if is_repository:
        with TemporaryDirectory(prefix="trimtab-head.") as package:
            fill(Path(package))
            place = push_to_hub(
                Path(package), config.destination, is_private=config.private, message=config.message
            )
    else:
        destination = Path(config.destination).expanduser()
        write_package(destination, fill)
        place = str(destination)
    print(f"{folder} is at {place}: {_told(head)}")
    if is_repository and config.base_model is None and "/" not in head.base_model.name:
        print(f"its card names the model {head.base_model.name!r}: give its hub id with --base-model")


def _check(config: PushConfig, is_repository: bool) -> None:
    if is_repository:
        return
    is_bare = "/" not in config.destination and not config.destination.startswith((".", "~"))
    if is_bare and not config.to_folder and not Path(config.destination).exists():
        raise UserError(
            f"{config.destination!r} could be a folder or a repository: write ./{config.destination}, or "
            f"user/{config.destination}"
        )
    if config.private or config.message:
        flag = "--private" if config.private else "--message"
        raise UserError(f"{flag} is of a repository, and {config.destination} is a folder: leave it out")


def _fill(
    config: PushConfig,
    is_repository: bool,
    head: Manifest,
    folder: Path,
    judgement: Judgement | None,
    package: Path,
) -> None:
    from trimtab.guidance.publish.card import CardFacts, render_card  # noqa: PLC0415 (heavy)
    from trimtab.guidance.publish.package import PICTURES_FOLDER, gather  # noqa: PLC0415 (heavy)

    facts = CardFacts(
        config.destination if is_repository else None, config.license, config.base_model, config.datasets
    )
    card = render_card(head, facts, judgement, PICTURES_FOLDER)
    pictures = [path for path, _ in judgement.pictures] if judgement else []
    gather(folder, package, card, pictures)


def _told(head: Manifest) -> str:
    names: Sequence[str] = [name for name in ("advantage", "value", "reward") if getattr(head.parts, name)]
    return f"head {head.name} of {head.base_model.name} with {', '.join(names)}"
