"""`trimtab heads push` and `trimtab heads pull`: heads to and from folders and the hub."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from trimtab.guidance.errors import UserError
from trimtab.guidance.heads.manifest import Manifest
from trimtab.guidance.publish.card import CardFacts, render_card
from trimtab.guidance.publish.hub import fetch_head, is_hub_id, push_to_hub
from trimtab.guidance.publish.judgement import Judgement, read_judgement
from trimtab.guidance.publish.package import (
    PICTURES_FOLDER,
    check_replaceable,
    copy_published,
    gather,
    verify,
    write_package,
)
from trimtab.server.commands.heads.config import PullConfig, PushConfig
from trimtab.server.commands.model import find_head_folder


def push(config: PushConfig) -> None:
    """Publishes it. Raises HeadError or UserError with one line; then nothing was replaced."""
    folder = find_head_folder(config.head)
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


def pull(config: PullConfig) -> None:
    """Fetches it. Raises HeadError or UserError with one line; then nothing was replaced."""
    destination = config.destination.expanduser()
    check_replaceable(destination)
    folder = _source(config.source, config.revision)
    head = verify(folder, config.source)
    if folder.resolve() == destination.resolve():
        raise UserError(f"{config.source} is already {destination}: name another folder")
    write_package(destination, partial(copy_published, folder))
    print(f"{config.source} is in {destination}: {_told(head)}")
    print(f"serve it with its model: trimtab serve --model … --heads {destination}")


def _source(source: str, revision: str | None) -> Path:
    if is_hub_id(source):
        return fetch_head(source, revision)
    if revision is not None:
        raise UserError(f"--revision is of a repository, and {source} is a folder: leave it out")
    return Path(source).expanduser()


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
    facts = CardFacts(
        config.destination if is_repository else None, config.license, config.base_model, config.datasets
    )
    card = render_card(head, facts, judgement, PICTURES_FOLDER)
    pictures = [path for path, _ in judgement.pictures] if judgement else []
    gather(folder, package, card, pictures)


def _told(head: Manifest) -> str:
    names: Sequence[str] = [name for name in ("advantage", "value", "reward") if getattr(head.parts, name)]
    return f"head {head.name} of {head.base_model.name} with {', '.join(names)}"
