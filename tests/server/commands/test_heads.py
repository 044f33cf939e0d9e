from __future__ import annotations

import json

import pytest

from trimtab.server.cli import main

HEAD = {
    "format": 1,
    "name": "calm",
    "parts": {"advantage": {"form": "tied", "rank": 8}, "value": {"form": "linear"}},
    "hidden_size": 32,
    "vocab_size": 64,
    "base_model": {"name": "tiny", "fingerprint": "f1", "tokenizer_hash": "", "template_hash": ""},
    "trained_on": "12 pairs",
    "metrics": {"accuracy": 0.75},
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    head = tmp_path / "heads" / "calm"
    head.mkdir(parents=True)
    (head / "head.json").write_text(json.dumps(HEAD))
    return head


@pytest.mark.parametrize("up", [0, 1])
def test_list_takes_head_folders_and_folders_of_them(folder, capsys, up):
    assert main(["heads", "list", str([folder, folder.parent][up])]) == 0
    shown = capsys.readouterr().out
    for text in ("calm", "advantage (tied), value (linear)", "tiny", "12 pairs"):
        assert text in shown


def test_a_broken_head_hides_no_other(folder, capsys):
    broken = folder.parent / "broken"
    broken.mkdir()
    (broken / "head.json").write_text("{")
    assert main(["heads", "list", str(folder.parent)]) == 1
    shown = capsys.readouterr()
    assert "12 pairs" in shown.out
    assert "broken" in shown.err


def test_show_prints_the_whole_manifest(folder, capsys):
    assert main(["heads", "show", str(folder)]) == 0
    shown = capsys.readouterr().out
    for text in ("parts.advantage.rank", "metrics.accuracy", "0.75", "base_model.fingerprint", "f1"):
        assert text in shown


def test_show_says_first_whether_anything_was_learned(folder, capsys):
    (folder / "head.json").write_text(json.dumps(HEAD | {"metrics": {"advantage_pairs": 1}}))
    assert main(["heads", "show", str(folder)]) == 0
    first = next(line for line in capsys.readouterr().out.splitlines() if "held-out" in line)
    assert "advantage on held-out rows" in first
    assert "too few to tell (1 pair)" in first


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["list", "{}"], 1, "trimtab train"),
        (["show", "{}"], 1, "head.json"),
        (["lsit"], 2, "list, show"),
        ([], 2, "list, show"),
    ],
)
def test_what_is_no_head_is_told_in_one_line(tmp_path, capsys, args, code, says):
    assert main(["heads", *[arg.format(tmp_path) for arg in args]]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
