from __future__ import annotations

import os
from pathlib import Path

import pytest

from trimtab.guidance.locate import name_of


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (".", "model"),
        ("./", "model"),
        ("..", "models"),
        ("../model", "model"),
        ("../model/", "model"),
        ("../model/.", "model"),
        ("../link", "model"),
        ("inner/..", "model"),
        ("someone/a-model", "a-model"),
        ("a-model", "a-model"),
    ],
)
def test_a_name_is_of_where_a_path_leads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, name: str
):
    (tmp_path / "models/model/inner").mkdir(parents=True)
    os.symlink(tmp_path / "models/model", tmp_path / "models/link")
    monkeypatch.chdir(tmp_path / "models/model")
    assert name_of(given) == name
    assert name_of(Path(given)) == name


def test_no_name_is_empty():
    assert name_of("/")
