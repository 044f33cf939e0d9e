from __future__ import annotations

import json
from pathlib import Path

import pytest

from trimtab.guidance.errors import UserError
from trimtab.server.api.config import ApiConfig
from trimtab.server.api.generation_defaults import GenerationConfigError, SamplingDefaults, read_defaults
from trimtab.server.commands.serve.run import find_defaults

pytestmark = pytest.mark.anyio
STATED = {
    "temperature": 0.6,
    "top_p": 0.9,
    "top_k": 20,
    "min_p": 0.05,
    "repetition_penalty": 1.1,
    "max_new_tokens": 7,
    "eos_token_id": [1, 2],
    "do_sample": True,
}
DEFAULTS = SamplingDefaults(0.6, 0.9, 20, 0.05, 1.1, 7, "generation_config.json")


@pytest.fixture
def write(tmp_path: Path):
    def write(stated: object) -> Path:
        path = tmp_path / "generation_config.json"
        path.write_text(stated if isinstance(stated, str) else json.dumps(stated))
        return path

    return write


def test_the_files_defaults_are_read_and_null_is_none(write):
    assert read_defaults(write(STATED)) == DEFAULTS
    stated = {**STATED, "top_k": -1, "temperature": None, "top_p": 1}
    read = read_defaults(write(stated))
    assert (read.top_k, read.temperature, read.top_p) == (0, None, 1.0)
    assert str(read_defaults(write({"eos_token_id": 1}))) == ""


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": 1.5}, "top_k"),
        ({"top_k": "50"}, "top_k"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": True}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"max_new_tokens": 0}, "max_tokens"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": float("inf")}, "top_k"),
        ({"temperature": 10**400}, "temperature"),
        ([1], "object"),
        ("{", "read"),
        ('{"top_k": 1e400}', "top_k"),
        ('{"top_k": ' + "9" * 100_000 + "}", "top_k"),
        ('{"top_k": ' + "[" * 100_000 + "}", "top_k: nested"),
        ('{"top_k": 1, "top_k": 2}', "top_k: is given twice"),
        ('{"top_k": "a\\n\\u001b[31m\\u202e"}', "top_k"),
        ('{"top_k": "' + "x" * 100_000 + '"}', "top_k"),
    ],
)
def test_what_cannot_be_honoured_is_told_with_the_file_and_the_fix(write, stated: object, words: str):
    path = write(stated)
    with pytest.raises(GenerationConfigError, match=words) as told:
        read_defaults(path)
    assert str(path) in str(told.value)
    assert str(told.value).isprintable() and len(str(told.value)) < 500 + len(str(path))
    assert "--generation-config none" in str(told.value)


def test_where_the_defaults_come_from(write, tmp_path: Path):
    path = write(STATED)
    assert find_defaults(tmp_path, "auto") == DEFAULTS
    assert find_defaults(tmp_path, "none") == find_defaults(tmp_path, "vllm") == SamplingDefaults()
    assert find_defaults("elsewhere", str(path)) == find_defaults("elsewhere", str(tmp_path)) == DEFAULTS
    path.unlink()
    assert find_defaults(tmp_path, "auto") == SamplingDefaults()
    with pytest.raises(UserError, match=r"generation_config\.json"):
        find_defaults(tmp_path, str(path))


async def submitted(make_engine, make_client, path: str, body: dict[str, object]):
    engine = make_engine()
    async with make_client(engine, ApiConfig(sampling_defaults=DEFAULTS)) as client:
        assert (await client.post(path, json=body)).status_code == 200
    return engine.submitted[0].sampling


CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ASKED = {CHAT: {"messages": [{"role": "user", "content": "a"}]}, COMPLETIONS: {"prompt": "abc"}}


@pytest.mark.parametrize("path", ASKED)
async def test_requests_that_say_nothing_else_are_sampled_by_the_defaults(make_engine, make_client, path):
    sampling = await submitted(make_engine, make_client, path, ASKED[path])
    got = (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p, sampling.repetition_penalty)
    assert got == (0.6, 0.9, 20, 0.05, 1.1)
    assert sampling.max_tokens == {CHAT: 7, COMPLETIONS: 16}[path]


@pytest.mark.parametrize("path", ASKED)
async def test_what_a_request_says_goes_before_the_defaults(make_engine, make_client, path):
    own = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    body = {**ASKED[path], **own, "max_tokens": 30}
    sampling = await submitted(make_engine, make_client, path, body)
    assert {name: getattr(sampling, name) for name in own} == own
    assert sampling.max_tokens == 30
