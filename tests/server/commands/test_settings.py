"""Settings of `trimtab serve`: flags, the environment, and a YAML file."""

from __future__ import annotations

import pytest

from trimtab.guidance.errors import DataError, UsageError
from trimtab.server.cli import main
from trimtab.server.commands.serve.config import ServeConfig
from trimtab.server.commands.settings import print_settings, read_settings

FILE = """
port: 1
max-num-seqs: 1
block_size: 8
expert: [a=b]
request_timeout: 1e2
profiles: {late: {strength: 2, on: answer}}
"""


def read(*args, **environment):
    return read_settings(ServeConfig, "trimtab serve", args, environment)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "serve.yaml"
    path.write_text(FILE)
    return path


def test_flags_count_more_than_the_environment_and_that_more_than_the_file(file):
    config = read("--port", "3", TRIMTAB_CONFIG=str(file), TRIMTAB_PORT="2", TRIMTAB_MAX_NUM_SEQS="2")
    assert (config.port, config.engine.max_num_seqs, config.engine.block_size) == (3, 2, 8)
    assert (config.access.request_timeout, config.engine.num_blocks) == (100, None)
    assert config.engine.expert == ("a=b",)
    assert read("--config", str(file), "--expert", "c=d").engine.expert == ("c=d",)
    assert config.profiles == {"late": {"strength": 2, "on": "answer"}}
    assert read("--config", str(file)).port == read(f"--config={file}").port == 1


def test_a_variable_is_read_as_the_option_needs_it():
    config = read(
        TRIMTAB_ALLOWED_HOSTS="a.org, b.org",
        TRIMTAB_ALLOWED_ORIGINS="['*']",
        TRIMTAB_SERVED_MODEL_NAME="12",
        TRIMTAB_STRICT="true",
        TRIMTAB_HOST="",
        TRIMTAB_API_KEYS="a-secret-key",
        TRIMTAB_PROFILES="{kind: {strength: 1}}",
    )
    assert config.access.allowed_hosts == ("a.org", "b.org")
    assert config.access.allowed_origins == ("*",)
    assert (config.engine.served_model_name, config.engine.strict) == ("12", True)
    assert (config.host, config.access.api_keys) == ("127.0.0.1", None)
    assert config.profiles == {"kind": {"strength": 1}}


def test_what_kubernetes_sets_for_a_service_called_trimtab_says_nothing():
    config = read(TRIMTAB_PORT="tcp://10.0.0.1:8000", TRIMTAB_SERVICE_HOST="10.0.0.1")
    assert config == read()


def test_a_file_of_what_holds_gives_the_same_again(file, tmp_path):
    config = read("--config", str(file), "--heads", "x", "y", "--strict", "--default-strength", "2")
    again = tmp_path / "again.yaml"
    again.write_text(print_settings(config))
    assert print_settings(read("--config", str(again))) == print_settings(config)


def test_print_config_shows_and_serves_nothing(capsys, monkeypatch):
    monkeypatch.setenv("TRIMTAB_PORT", "7")
    assert main(["serve", "--print-config"]) == 0
    assert "port: 7\n" in capsys.readouterr().out


BAD = {
    "port: x": "serve.yaml: port must be a whole number, got 'x'",
    "prot: 1": "unknown key prot; did you mean port",
    "config: a": "unknown key config",
    "zzz: 1": "unknown key zzz; --print-config shows",
    "[port]": "must hold a mapping",
    "a: [": "is not YAML",
    "profiles: [a]": "profiles must be a mapping",
}


@pytest.mark.parametrize("text", BAD)
def test_a_file_that_is_wrong_is_told_by_its_key(text, tmp_path):
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=BAD[text]):
        read("--config", str(path))


def test_a_variable_that_is_wrong_is_told_by_its_name():
    with pytest.raises(UsageError, match=r"^TRIMTAB_PORT must be a whole number, got '1\.5'"):
        read(TRIMTAB_PORT="1.5")
    with pytest.raises(UsageError, match=r"TRIMTAB_MAX_MODELLEN: .*did you mean TRIMTAB_MAX_MODEL_LEN"):
        read(TRIMTAB_MAX_MODELLEN="5")
    with pytest.raises(DataError, match="cannot be read"):
        read(TRIMTAB_CONFIG="/nowhere/serve.yaml")
    with pytest.raises(UsageError, match="--config needs a YAML file"):
        read("--config")
