from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from examples.toy import HEADS_DIR, MODEL_DIR
from trimtab.guidance.heads.manifest import MANIFEST_FILE, load_manifest
from trimtab.guidance.training.scale import KL_PER_TOKEN
from trimtab.server import cli


@pytest.fixture
def rollouts(tmp_path: Path) -> Path:
    told = ("I am glad that you asked.", "Let the dough rest in a warm place.", "No.")
    rows = [{"prompt": [{"role": "user", "content": "How do I bake bread?"}], "completion": t} for t in told]
    path = tmp_path / "rollouts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def old_head(tmp_path: Path) -> Path:
    """As heads were written before a unit of strength was a price."""
    folder = tmp_path / "kind"
    shutil.copytree(HEADS_DIR / "kind", folder)
    data = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    part = data["parts"]["advantage"]
    part.pop("kl_per_token", None)
    part.pop("optimum", None)
    part |= {"scale": 1.0, "value_per_advantage": 0.5}
    data["metrics"]["kl_per_token"] = 0.0079
    (folder / MANIFEST_FILE).write_text(json.dumps(data), encoding="utf-8")
    return folder


def test_an_older_head_gets_the_unit_of_strength_and_keeps_all_else(
    old_head: Path, rollouts: Path, tmp_path: Path
):
    before, out = load_manifest(old_head), tmp_path / "new"
    args = ["heads", "rescale", str(old_head), "--model", str(MODEL_DIR), "--rollouts", str(rollouts)]
    assert cli.main([*args, "--out", str(out)]) == 0
    assert load_manifest(old_head) == before
    after = load_manifest(out)
    part = after.parts.advantage
    assert part.kl_per_token == pytest.approx(KL_PER_TOKEN, rel=0.01)
    assert part.scale != 1
    assert part.optimum == pytest.approx(1 / part.scale)
    assert part.value_per_advantage * part.scale == pytest.approx(0.5)
    assert "kl_per_token" not in after.metrics
    kept = dataclasses.replace(before.parts.advantage, scale=part.scale)
    assert dataclasses.replace(part, kl_per_token=None, optimum=None, value_per_advantage=0.5) == kept
    assert (out / "head.safetensors").read_bytes() == (old_head / "head.safetensors").read_bytes()
    assert cli.main(args) == 0
    assert load_manifest(old_head) == after


def test_a_missing_file_changes_nothing(old_head: Path, capsys: pytest.CaptureFixture[str]):
    before = load_manifest(old_head)
    args = ["heads", "rescale", str(old_head), "--model", str(MODEL_DIR), "--rollouts", "none.jsonl"]
    assert cli.main(args) == 1
    assert "none.jsonl: no such file" in capsys.readouterr().err
    assert load_manifest(old_head) == before


def test_a_place_that_cannot_be_written_is_told_in_a_line(
    old_head: Path, rollouts: Path, capsys: pytest.CaptureFixture[str]
):
    args = ["heads", "rescale", str(old_head), "--model", str(MODEL_DIR), "--rollouts", str(rollouts)]
    assert cli.main([*args, "--out", str(rollouts / "x")]) == 1
    assert "rollouts.jsonl/x cannot be written (" in capsys.readouterr().err.splitlines()[-1]
