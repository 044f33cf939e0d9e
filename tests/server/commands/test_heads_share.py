"""`trimtab heads push` and `pull` between folders, and to a hub that is faked."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from trimtab.guidance.heads.forms import Head
from trimtab.guidance.heads.manifest import AdvantagePart, BaseModel, Manifest, Parts, ScalarPart
from trimtab.guidance.heads.store import load_head, save_head
from trimtab.server.cli import main
from trimtab.server.commands.heads import share

PARTS = Parts(AdvantagePart(rank=3), reward=ScalarPart())
MANIFEST = Manifest("calm", PARTS, 6, 10, BaseModel("tiny", "0123", "", ""), trained_on="12 pairs")
FILES = ["README.md", "head.json", "head.safetensors"]


def a_head(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    head = Head(PARTS, 6, 10)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    save_head(folder, head, MANIFEST)
    return folder


@pytest.fixture
def head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return a_head(tmp_path / "calm")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def complaint(capsys: pytest.CaptureFixture[str], *args: object, code: int = 1) -> str:
    assert main(["heads", *map(str, args)]) == code
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_head_survives_push_and_pull_between_folders(head: Path, tmp_path: Path, capsys):
    (head / "optimizer.bin").write_bytes(b"private")
    assert main(["heads", "push", str(head), "./shared"]) == 0
    assert names(tmp_path / "shared") == FILES
    assert main(["heads", "pull", "./shared", "mine/calm"]) == 0
    pulled, manifest = load_head(tmp_path / "mine/calm")
    assert manifest == MANIFEST
    want = load_file(head / "head.safetensors")
    assert all(torch.equal(tensor, want[name]) for name, tensor in pulled.state_dict().items())
    assert (tmp_path / "mine/calm/README.md").read_text() == (tmp_path / "shared/README.md").read_text()
    assert names(tmp_path) == ["calm", "mine", "shared"]
    assert names(tmp_path / "mine") == ["calm"]
    assert "head calm of tiny with advantage, reward" in capsys.readouterr().out
    assert str(tmp_path) not in (tmp_path / "shared/README.md").read_text()


def test_what_lies_beside_a_published_head_is_not_pulled(head: Path, tmp_path: Path):
    main(["heads", "push", str(head), "./shared"])
    (tmp_path / "shared" / "evil.py").write_text("print('run me')")
    (tmp_path / "shared" / "evaluation").mkdir()
    (tmp_path / "shared" / "evaluation" / "frontier.png").write_bytes(b"png")
    (tmp_path / "shared" / "evaluation" / "evil.pkl").write_bytes(b"pickle")
    assert main(["heads", "pull", "./shared", "mine"]) == 0
    assert names(tmp_path / "mine") == ["README.md", "evaluation", "head.json", "head.safetensors"]
    assert names(tmp_path / "mine" / "evaluation") == ["frontier.png"]


def test_an_older_head_is_replaced(head: Path, tmp_path: Path):
    a_head(tmp_path / "shared", seed=1)
    assert main(["heads", "push", str(head), "./shared", "--license", "mit"]) == 0
    want = load_file(head / "head.safetensors")
    assert torch.equal(
        load_file(tmp_path / "shared/head.safetensors")["reward.weight"], want["reward.weight"]
    )
    assert "license: mit" in (tmp_path / "shared/README.md").read_text()
    assert names(tmp_path) == ["calm", "shared"]


def test_a_head_is_given_a_card_where_it_is(head: Path):
    assert main(["heads", "push", str(head), str(head)]) == 0
    assert names(head) == FILES


@pytest.mark.parametrize("action", ["push", "pull"])
def test_a_folder_that_holds_something_else_is_not_replaced(head: Path, tmp_path: Path, capsys, action: str):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("irreplaceable")
    assert "is no head folder" in complaint(capsys, action, head, tmp_path / "thesis")
    old = a_head(tmp_path / "old")
    (old / "notes.txt").write_text("irreplaceable, too")
    assert "old holds notes.txt beside a head" in complaint(capsys, action, head, old)
    assert names(tmp_path / "thesis") == ["thesis.tex"]
    assert names(old) == ["head.json", "head.safetensors", "notes.txt"]


def spoil(folder: Path) -> None:
    tensors = load_file(folder / "head.safetensors")
    save_file(tensors | {"reward.weight": torch.full((6,), float("nan"))}, folder / "head.safetensors")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: (f / "head.safetensors").unlink(), "is missing"),
        (lambda f: os.truncate(f / "head.safetensors", 100), "is corrupt"),
        (spoil, "not finite"),
        (lambda f: (f / "head.json").write_text("{}"), "is missing"),
        (lambda f: (f / "head.json").unlink(), "is not a head folder"),
    ],
)
@pytest.mark.parametrize("action", ["push", "pull"])
def test_a_damaged_head_goes_nowhere(head: Path, tmp_path: Path, capsys, action: str, damage, says: str):
    damage(head)
    line = complaint(capsys, action, head, "./there")
    assert says in line
    assert str(head) in line
    assert names(tmp_path) == ["calm"]


def test_a_full_disk_leaves_the_old_head_whole(head: Path, tmp_path: Path, capsys, monkeypatch):
    a_head(tmp_path / "shared", seed=1)
    before = (tmp_path / "shared/head.safetensors").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trimtab.guidance.publish.package.shutil.copyfile", full)
    assert "No space left on device" in complaint(capsys, "push", head, "./shared")
    assert (tmp_path / "shared/head.safetensors").read_bytes() == before
    assert names(tmp_path) == ["calm", "shared"]


def test_flags_that_a_folder_cannot_honour_are_refused(head: Path, capsys):
    assert "--private is of a repository" in complaint(capsys, "push", head, "./there", "--private")
    assert "--message is of a repository" in complaint(capsys, "push", head, "./there", "--message", "x")
    assert "--revision is of a repository" in complaint(capsys, "pull", head, "./there", "--revision", "v1")


def test_a_bare_name_is_ambiguous_until_told(head: Path, tmp_path: Path, capsys):
    assert "./shared" in complaint(capsys, "push", head, "shared")
    assert main(["heads", "push", str(head), "shared", "--to-folder"]) == 0
    assert names(tmp_path / "shared") == FILES


def test_a_head_is_not_pulled_onto_itself(head: Path, capsys):
    assert "name another folder" in complaint(capsys, "pull", head, head)
    assert names(head) == ["head.json", "head.safetensors"]


def test_a_repository_gets_the_files_and_pictures_of_the_report(
    head: Path, tmp_path: Path, capsys, monkeypatch
):
    (tmp_path / "eval").mkdir()
    estimate = {"mean": 0.75, "low": 0.5, "high": 1.0}
    part = {"head": "calm", "part": "reward", "accuracy": estimate, "above_length": estimate}
    length = {"rule": "longer", "accuracy": estimate}
    preferences = {"num_pairs": 4, "num_prompts": 4, "parts": [part], "length": length}
    report = {"preferences": preferences, "frontier": None, "sycophancy": None}
    (tmp_path / "eval" / "report.json").write_text(json.dumps(report))
    (tmp_path / "eval" / "reliability.png").write_bytes(b"png")
    sent: dict[str, bytes] = {}

    def upload(folder: Path, repo: str, *, is_private: bool, message: str) -> str:
        assert (repo, is_private, message) == ("user/calm", True, "first")
        files = (path for path in folder.rglob("*") if path.is_file())
        sent.update({str(path.relative_to(folder)): path.read_bytes() for path in files})
        return f"https://hub.test/{repo}"

    monkeypatch.setattr(share, "push_to_hub", upload)
    flags = ("--private", "--message", "first", "--report", str(tmp_path / "eval"))
    assert main(["heads", "push", str(head), "user/calm", *flags]) == 0
    assert sorted(sent) == ["README.md", "evaluation/reliability.png", "head.json", "head.safetensors"]
    card = sent["README.md"].decode()
    assert "trimtab heads pull user/calm ./calm" in card
    assert "(evaluation/reliability.png)" in card
    told = capsys.readouterr().out
    assert "https://hub.test/user/calm" in told
    assert "--base-model" in told
    assert names(tmp_path) == ["calm", "eval"]


def test_a_repository_is_pulled_verified_and_put_in_place(head: Path, tmp_path: Path, capsys, monkeypatch):
    asked: list[object] = []

    def fetch(repo: str, revision: str | None) -> Path:
        asked.append((repo, revision))
        return head

    monkeypatch.setattr(share, "fetch_head", fetch)
    assert main(["heads", "pull", "user/calm", "mine", "--revision", "v1"]) == 0
    assert asked == [("user/calm", "v1")]
    assert names(tmp_path / "mine") == ["head.json", "head.safetensors"]
    spoil(head)
    line = complaint(capsys, "pull", "user/calm", "another")
    assert "user/calm/head.safetensors" in line
    assert not (tmp_path / "another").exists()
