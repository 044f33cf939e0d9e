from __future__ import annotations

import dataclasses
import json
import os
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from trimtab.guidance.errors import HeadError
from trimtab.guidance.heads.fingerprint import PolicyIdentity
from trimtab.guidance.heads.forms import Head
from trimtab.guidance.heads.manifest import AdvantagePart, BaseModel, Manifest, Parts, ScalarPart
from trimtab.guidance.heads.store import load_head, save_head

D, V = 6, 10
BASE = BaseModel("tiny", "0123456789abcdef", "tok", "tpl")
POLICY = PolicyIdentity(BASE, D, V)
PARTS = Parts(AdvantagePart(rank=3), ScalarPart("linear"), ScalarPart("mlp", width=4))
MANIFEST = Manifest("kind", PARTS, D, V, BASE)


def random_head(parts: Parts = PARTS, seed: int = 0) -> Head:
    torch.manual_seed(seed)
    head = Head(parts, D, V)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    return head


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_head(tmp_path / "kind", random_head(), MANIFEST)
    return tmp_path / "kind"


def test_a_head_survives_the_round_trip_and_leaves_two_files(folder: Path):
    head, manifest = load_head(folder, POLICY)
    assert manifest == MANIFEST
    want = random_head().state_dict()
    assert head.state_dict().keys() == want.keys()
    assert all(torch.equal(tensor, want[name]) for name, tensor in head.state_dict().items())
    assert sorted(path.name for path in folder.iterdir()) == ["head.json", "head.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == ["kind"]


def test_whoever_may_read_the_manifest_may_read_the_weights(folder: Path):
    modes = {path.stat().st_mode for path in folder.iterdir()}
    assert len(modes) == 1, "a server in a container runs as somebody else"


def test_saving_again_replaces_the_head(folder: Path):
    save_head(folder, random_head(seed=1), dataclasses.replace(MANIFEST, trained_on="more"))
    head, manifest = load_head(folder)
    assert manifest.trained_on == "more"
    assert torch.equal(head.state_dict()["value.weight"], random_head(seed=1).state_dict()["value.weight"])
    assert [path.name for path in folder.parent.iterdir()] == ["kind"]


def test_a_failed_save_leaves_the_old_head_whole(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(self: Manifest) -> str:
        raise OSError("disk full")

    monkeypatch.setattr(Manifest, "to_json", fail)
    with pytest.raises(OSError, match="disk full"):
        save_head(folder, random_head(seed=1), MANIFEST)
    monkeypatch.undo()
    head, _ = load_head(folder)
    assert torch.equal(head.state_dict()["value.weight"], random_head().state_dict()["value.weight"])
    assert [path.name for path in folder.parent.iterdir()] == ["kind"]


def test_a_folder_that_holds_something_else_is_not_replaced(tmp_path: Path):
    (tmp_path / "kind").mkdir()
    (tmp_path / "kind" / "thesis.tex").write_text("irreplaceable")
    with pytest.raises(HeadError, match="is no head folder"):
        save_head(tmp_path / "kind", random_head(), MANIFEST)
    assert (tmp_path / "kind" / "thesis.tex").exists()


def test_the_advantage_takes_the_dtype_and_scalars_stay_float32(folder: Path):
    head, _ = load_head(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in head.advantage.parameters()} == {torch.bfloat16}
    assert {p.dtype for part in (head.value, head.reward) for p in part.parameters()} == {torch.float32}


def rewrite(folder: Path, **changes: torch.Tensor | None) -> None:
    tensors = load_file(folder / "head.safetensors") | changes
    save_file({k: v for k, v in tensors.items() if v is not None}, folder / "head.safetensors")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda f: (f / "head.safetensors").write_bytes(b"\x00" * 40), "is corrupt"),
        (lambda f: os.truncate(f / "head.safetensors", 400), "is corrupt"),
        (lambda f: (f / "head.safetensors").unlink(), "is missing"),
        (lambda f: rewrite(f, **{"value.weight": None}), "tensor value.weight is missing"),
        (lambda f: rewrite(f, **{"value.weight": torch.zeros(D + 1)}), r"value.weight has shape \[7\]"),
        (lambda f: rewrite(f, **{"value.weight": torch.full((D,), float("nan"))}), "not finite"),
        (lambda f: rewrite(f, **{"charm.weight": torch.zeros(1)}), "charm.weight belongs to no part"),
    ],
)
def test_a_damaged_head_is_refused_in_one_line_that_names_the_folder(folder: Path, damage, named: str):
    damage(folder)
    with pytest.raises(HeadError, match=named) as caught:
        load_head(folder, POLICY)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def other(**changes: object) -> PolicyIdentity:
    sizes = {key: changes.pop(key) for key in ("hidden_size", "vocab_size") if key in changes}
    return dataclasses.replace(POLICY, base_model=dataclasses.replace(BASE, **changes), **sizes)


@pytest.mark.parametrize(
    ("policy", "both"),
    [
        (other(name="big", hidden_size=8), ("hidden_size 6", "hidden_size 8")),
        (other(name="big", vocab_size=11), ("vocab_size 10", "vocab_size 11")),
        (other(name="big", fingerprint="fedcba9876543210"), ("0123456789ab", "fedcba987654")),
    ],
)
def test_a_head_of_another_policy_is_refused_with_both_names(folder: Path, policy, both):
    with pytest.raises(HeadError) as caught:
        load_head(folder, policy)
    for word in (*both, "tiny", "big", str(folder)):
        assert word in str(caught.value)


@pytest.mark.parametrize("key", ["tokenizer_hash", "template_hash"])
def test_another_tokenizer_or_template_warns_and_loads(folder: Path, key: str):
    with pytest.warns(UserWarning, match="tokenizer" if key == "tokenizer_hash" else "template"):
        load_head(folder, other(**{key: "different"}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_head(folder, POLICY)


def test_a_manifest_that_asks_for_more_than_the_file_holds_is_refused(folder: Path):
    data = json.loads((folder / "head.json").read_text())
    data["parts"]["advantage"]["rank"] = 10**9
    (folder / "head.json").write_text(json.dumps(data))
    with pytest.raises(HeadError, match=r"advantage\.down has shape"):
        load_head(folder, POLICY)
