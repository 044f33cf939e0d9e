"""Files and folders are whole or as they were, whatever fails; and nothing else in the house moves any."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import torch
from failing_renames import contents, fail_into
from safetensors.torch import save_file

from trimtab.guidance.errors import HeadError
from trimtab.guidance.features.layout import FeatureManifest, PositionChoice
from trimtab.guidance.files import (
    whole_file,
    whole_folder,
    write_bytes,
    write_json,
    write_json_lines,
    write_parquet,
    write_text,
)
from trimtab.guidance.heads.forms import Head
from trimtab.guidance.heads.manifest import BaseModel, Manifest, Parts, ScalarPart
from trimtab.guidance.heads.store import save_head
from trimtab.guidance.publish.classifier import save_classifier
from trimtab.guidance.publish.package import write_package
from trimtab.guidance.training.checkpoint import save_weights
from trimtab.guidance.training.config import OnPolicyConfig
from trimtab.guidance.training.on_policy.guard import KlGuard

ROOT = Path(__file__).parents[2]
BASE = BaseModel("tiny", "0123456789abcdef", "tok", "tpl")
PARTS = Parts(reward=ScalarPart("linear"))


def fill(mark: str, folder: Path) -> None:
    (folder / "head.json").write_text(mark)


def head(mark: str, folder: Path) -> None:
    save_head(folder, Head(PARTS, 2, 3), Manifest(mark, PARTS, 2, 3, BASE))


def folder_itself(mark: str, folder: Path) -> None:
    with whole_folder(folder) as new:
        fill(mark, new)


def package(mark: str, folder: Path) -> None:
    write_package(folder, partial(fill, mark))


def classifier(mark: str, folder: Path) -> None:
    """Replaces an empty folder only."""
    if mark == "old":
        folder.mkdir()
        return
    part: Any = SimpleNamespace(save_pretrained=partial(fill, mark))
    save_classifier(part, part, "a card", folder)


@pytest.mark.parametrize("write", [folder_itself, head, package, classifier])
def test_a_second_rename_that_fails_leaves_the_older_folder_and_nothing_else(
    write: Callable[[str, Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write("old", tmp_path / "it")
    before = contents(tmp_path)
    with monkeypatch.context() as failing:
        fail_into(tmp_path / "it", failing)
        with pytest.raises((OSError, HeadError), match="No space left on device"):
            write("new", tmp_path / "it")
    assert contents(tmp_path) == before
    assert os.listdir(tmp_path) == ["it"]
    write("new", tmp_path / "it")
    assert contents(tmp_path) != before
    assert os.listdir(tmp_path) == ["it"]


def test_what_a_kill_between_two_renames_left_is_put_back_by_the_next_writer(tmp_path: Path):
    folder_itself("old", tmp_path / "it")
    (tmp_path / "it").rename(tmp_path / ".it.old")
    (tmp_path / ".it.new").mkdir()
    fill("half", tmp_path / ".it.new")

    def fails() -> None:
        with whole_folder(tmp_path / "it") as new:
            assert not list(new.iterdir())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert contents(tmp_path) == {"it/head.json": b"old"}


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path: Path):
    (tmp_path / "it").write_text("a letter")
    with pytest.raises(NotADirectoryError), whole_folder(tmp_path / "it"):
        pass
    assert contents(tmp_path) == {"it": b"a letter"}


def manifest(mark: str, path: Path) -> None:
    FeatureManifest(BASE, 2, mark, PositionChoice(), 1, 1).write(path.parent)


def weights(mark: str, path: Path) -> None:
    model = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(model.weight, len(mark))
    save_weights(model, path.parent)


def history(mark: str, path: Path) -> None:
    guard = KlGuard(path.parent, OnPolicyConfig(on_max_kl="adapt"), 1.0)
    guard.record({mark: 1.0}, torch.nn.Linear(1, 1))


WRITERS: dict[str, tuple[Callable[[str, Path], None], str]] = {
    "bytes": (lambda mark, path: write_bytes(path, mark.encode()), "it.png"),
    "text": (lambda mark, path: write_text(path, mark), "it.txt"),
    "json": (lambda mark, path: write_json(path, {"mark": mark}), "it.json"),
    "json lines": (lambda mark, path: write_json_lines(path, [mark, 2]), "it.jsonl"),
    "parquet": (lambda mark, path: write_parquet(path, pa.table({"mark": [mark]})), "it.parquet"),
    "features": (manifest, "features.json"),
    "weights": (weights, "model.safetensors"),
    "on-policy history": (history, "iterations.jsonl"),
}


@pytest.mark.parametrize(("write", "name"), WRITERS.values(), ids=WRITERS)
def test_a_rename_that_fails_leaves_the_older_file_and_nothing_else(
    write: Callable[[str, Path], None], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "run" / name
    write("old", path)
    before = contents(tmp_path)
    with monkeypatch.context() as failing:
        fail_into(path, failing)
        with pytest.raises(Exception, match="No space left on device"):
            write("newer", path)
    assert contents(tmp_path) == before
    write("newer", path)
    assert contents(tmp_path).keys() == before.keys()
    assert contents(tmp_path) != before


def test_a_kill_in_the_midst_is_forgotten_by_the_next_writer(tmp_path: Path):
    (tmp_path / ".it.new").write_text("half")
    with whole_file(tmp_path / "it") as new:
        assert new.read_text() == ""
        new.write_text("whole")
    assert contents(tmp_path) == {"it": b"whole"}


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_all_may_read_whom_the_umask_lets(tmp_path: Path, umask: int):
    """Also what safetensors writes, which lets nobody."""
    before = os.umask(umask)
    try:
        with whole_file(tmp_path / "file") as new:
            save_file({"x": torch.ones(1)}, new)
        with whole_folder(tmp_path / "folder") as new:
            (new / "inner").mkdir()
            save_file({"x": torch.ones(1)}, new / "inner" / "file")
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert modes == {0o666 & ~umask}
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o777 & ~umask


def test_a_device_is_written_to_and_not_replaced():
    write_text(Path("/dev/null"), "nothing")
    assert Path("/dev/null").is_char_device()


def test_nothing_else_moves_files_into_their_place():
    moves = re.compile(r"\bos\.re(place|name)\(|\.rename\(|mkdtemp|mkstemp")
    folders = ("kernels", "guidance", "server", "benchmarks", "examples")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    found = {str(path.relative_to(ROOT)) for path in paths if moves.search(path.read_text(encoding="utf-8"))}
    # What kernels build is no file of a user's, and they import nothing of Trimtab.
    assert found == {"guidance/files.py", "kernels/cpu/library.py"}
