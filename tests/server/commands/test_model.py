from __future__ import annotations

from pathlib import Path

import pytest

from trimtab.guidance.errors import UserError
from trimtab.server.api.config import ApiConfig
from trimtab.server.commands import model as model_command
from trimtab.server.commands.model import ModelConfig, resolve_api, resolve_engine
from trimtab.server.engine.config import EngineConfig


def resolve_model(config: ModelConfig) -> tuple[EngineConfig, ApiConfig]:
    return resolve_engine(config.engine), resolve_api(config)


@pytest.fixture
def bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundled model with two heads."""
    for name in ("model/config.json", "heads/kind/head.json", "heads/brief/head.json"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("{}")
    monkeypatch.setattr(model_command, "MODEL_DIR", tmp_path / "model")
    monkeypatch.setattr(model_command, "HEADS_DIR", tmp_path / "heads")
    return tmp_path


def test_without_flags_the_bundled_model_is_steered_by_kind_at_strength_1(bundled):
    engine, api = resolve_model(ModelConfig())
    assert engine.model == bundled / "model"
    assert engine.heads == (bundled / "heads/brief", bundled / "heads/kind")
    assert engine.served_model_name == "bundled"
    assert api == ApiConfig(default_head="kind", default_strength=1.0)


def test_another_model_has_no_heads_and_strength_0(bundled):
    engine, api = resolve_model(ModelConfig(EngineConfig("some/model")))
    assert (engine.model, engine.heads, engine.served_model_name) == ("some/model", (), None)
    assert api == ApiConfig()


def test_heads_of_ones_own_replace_or_join_the_bundled_ones(bundled):
    own = bundled / "own"
    engine, api = resolve_model(ModelConfig(EngineConfig("bundled", (own,))))
    assert (engine.heads, api) == ((own,), ApiConfig())
    engine, api = resolve_model(ModelConfig(EngineConfig("bundled", (own, Path("bundled")))))
    assert engine.heads == (own, bundled / "heads/brief", bundled / "heads/kind")
    assert api == ApiConfig("kind", 1.0)


def test_a_head_on_the_hub_is_loaded_from_where_it_was_fetched_to(bundled, monkeypatch):
    monkeypatch.setattr("trimtab.guidance.publish.hub.fetch_head", lambda repo: bundled / "cache" / repo)
    engine, _ = resolve_model(ModelConfig(EngineConfig("bundled", (Path("user/calm"),))))
    assert engine.heads == (bundled / "cache/user/calm",)


def test_defaults_that_are_given_win(bundled):
    config = ModelConfig(EngineConfig("bundled", served_model_name="x"), "brief", 0.0)
    engine, api = resolve_model(config)
    assert engine.served_model_name == "x"
    assert api == ApiConfig("brief", 0.0)


def test_the_chat_template_is_read(bundled, tmp_path):
    (tmp_path / "t.jinja").write_text("{{ messages }}")
    assert resolve_api(ModelConfig(chat_template=tmp_path / "t.jinja")).chat_template == "{{ messages }}"


@pytest.mark.parametrize("missing", ["model/config.json", "heads/*/head.json"])
def test_a_bundled_model_that_was_not_built_is_told(bundled, missing):
    for path in bundled.glob(missing):
        path.unlink()
    with pytest.raises(UserError, match="make bundled"):
        resolve_model(ModelConfig())
