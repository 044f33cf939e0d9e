from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from trimtab.guidance.bundled import GENERATION_CONFIG
from trimtab.guidance.errors import UserError
from trimtab.guidance.model_names import DEFAULT_MODEL
from trimtab.server.api.config import ApiConfig
from trimtab.server.commands import model as model_command
from trimtab.server.commands.model import ModelConfig, resolve_api, resolve_engine
from trimtab.server.engine.config import EngineConfig


def resolve_model(config: ModelConfig) -> tuple[EngineConfig, ApiConfig]:
    return resolve_engine(config.engine), resolve_api(config)


@pytest.fixture
def heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of two bundled heads."""
    for name in ("heads/warm/head.json", "heads/brief/head.json"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("{}")
    monkeypatch.setattr(model_command, "HEADS_DIR", tmp_path / "heads")
    return tmp_path / "heads"


def _api(head: str | None = None, strength: float = 0.0) -> ApiConfig:
    """Of the default model, which has sampling defaults of ours."""
    return ApiConfig(head, strength, generation_config=str(GENERATION_CONFIG))


def test_without_flags_the_default_model_is_steered_by_warm_at_strength_1(heads):
    engine, api = resolve_model(ModelConfig())
    assert (engine.model, engine.heads) == (DEFAULT_MODEL, (heads / "brief", heads / "warm"))
    assert api == _api("warm", 1.0)


def test_no_head_steers_by_itself_where_warm_is_not_bundled(heads):
    shutil.rmtree(heads / "warm")
    engine, api = resolve_model(ModelConfig())
    assert (engine.heads, api) == ((heads / "brief",), _api())


def test_without_bundled_heads_the_default_model_is_plain(heads):
    shutil.rmtree(heads)
    engine, api = resolve_model(ModelConfig())
    assert (engine.heads, api) == ((), _api())
    with pytest.raises(UserError, match="--heads bundled"):
        resolve_model(ModelConfig(EngineConfig("some/model", (Path("bundled"),))))


def test_another_model_has_no_heads_and_strength_0(heads):
    engine, api = resolve_model(ModelConfig(EngineConfig("some/model")))
    assert (engine.model, engine.heads, engine.served_model_name) == ("some/model", (), None)
    assert api == ApiConfig()


def test_heads_of_ones_own_replace_or_join_the_bundled_ones(heads):
    own = heads / "own"
    engine, api = resolve_model(ModelConfig(EngineConfig(DEFAULT_MODEL, (own,))))
    assert (engine.heads, api) == ((own,), _api())
    engine, api = resolve_model(ModelConfig(EngineConfig(DEFAULT_MODEL, (own, Path("bundled")))))
    assert engine.heads == (own, heads / "brief", heads / "warm")
    assert api == _api("warm", 1.0)


def test_a_head_on_the_hub_is_loaded_from_where_it_was_fetched_to(heads, monkeypatch):
    monkeypatch.setattr("trimtab.guidance.publish.hub.fetch_head", lambda repo: heads / "cache" / repo)
    engine, _ = resolve_model(ModelConfig(EngineConfig(DEFAULT_MODEL, (Path("user/calm"),))))
    assert engine.heads == (heads / "cache/user/calm",)


def test_defaults_that_are_given_win(heads):
    config = ModelConfig(EngineConfig(DEFAULT_MODEL, served_model_name="x"), "brief", 0.0)
    engine, api = resolve_model(config)
    assert engine.served_model_name == "x"
    assert api == _api("brief", 0.0)


def test_the_chat_template_is_read(tmp_path):
    (tmp_path / "t.jinja").write_text("{{ messages }}")
    assert resolve_api(ModelConfig(chat_template=tmp_path / "t.jinja")).chat_template == "{{ messages }}"


def test_sampling_defaults_of_ones_own_replace_those_of_the_default_model():
    assert resolve_api(ModelConfig(generation_config="none")).generation_config == "none"
