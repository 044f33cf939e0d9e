"""Package of a head: puts its own two files, a card, and pictures of how it was judged together."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from trimtab.guidance.errors import HeadError
from trimtab.guidance.files import whole_folder
from trimtab.guidance.heads.manifest import MANIFEST_FILE, TENSORS_FILE, Manifest
from trimtab.guidance.heads.store import check_destination, load_head

CARD_FILE = "README.md"
PICTURES_FOLDER = "evaluation"
PATTERNS = (MANIFEST_FILE, TENSORS_FILE, CARD_FILE, f"{PICTURES_FOLDER}/*.png")
"""Nothing else is written, fetched or replaced."""


def published_files(folder: Path) -> list[Path]:
    """Those of PATTERNS that the folder holds."""
    return [path for pattern in PATTERNS for path in sorted(folder.glob(pattern)) if path.is_file()]


def verify(folder: Path, source: str) -> Manifest:
    """Reads the head in `folder`, and makes sure of its manifest and that its tensors are finite and of the
    shapes that the manifest says. source: what messages call the folder.

    Raises:
        HeadError: one line that names the source.
    """
    try:
        return load_head(folder)[1]
    except HeadError as error:
        raise HeadError(str(error).replace(str(folder), source)) from error


def check_replaceable(folder: Path) -> None:
    """Raises HeadError unless nothing would be lost with the folder but an older version of a head."""
    check_destination(folder)
    known = set(published_files(folder))
    others = sorted(path for path in folder.rglob("*") if path.is_file() and path not in known)
    if others:
        raise HeadError(
            f"{folder} holds {others[0].relative_to(folder)} beside a head, which would be lost: name "
            "another folder, or move it away"
        )


def gather(head: Path, into: Path, card: str, pictures: Sequence[Path] = ()) -> None:
    """Puts the files of a head, its card and pictures into a folder."""
    for name in (MANIFEST_FILE, TENSORS_FILE):
        shutil.copyfile(head / name, into / name)
    (into / CARD_FILE).write_text(card, encoding="utf-8")
    if pictures:
        (into / PICTURES_FOLDER).mkdir()
    for picture in pictures:
        shutil.copyfile(picture, into / PICTURES_FOLDER / picture.name)


def copy_published(source: Path, into: Path) -> None:
    """Copies what belongs to a published head, and nothing else that the source holds."""
    for path in published_files(source):
        target = into / path.relative_to(source)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)


def write_package(folder: Path, fill: Callable[[Path], None]) -> None:
    """Makes `folder` what `fill` puts into an empty one, replacing an older head; a failure leaves that as it
    was.

    Raises:
        HeadError: the folder holds something else, or cannot be written.
    """
    check_replaceable(folder)
    try:
        with whole_folder(folder) as new:
            fill(new)
    except OSError as error:
        raise HeadError(f"{folder} cannot be written ({error.strerror or error}): nothing changed") from error
