"""`trimtab serve` and `trimtab chat` with a tiny random model."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tiny_models import SIZES, byte_tokenizer, save_random_head, save_random_model
from transformers import LlamaConfig

from trimtab.server.cli import main


def save_policy(folder: Path, seed: int) -> Path:
    save_random_model(LlamaConfig(**SIZES), folder, seed)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}>"
    tokenizer.save_pretrained(folder)
    save_random_head(folder / "heads", folder, "kind")
    return folder


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_policy(tmp_path_factory.mktemp("policies") / "tiny", seed=0)


@pytest.fixture
def server(policy: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server that has bound its port, and its URL."""
    flags = ["--model", policy, "--heads", policy / "heads/kind", "--port", "0"]
    command = [sys.executable, "-m", "trimtab.server.cli", "serve", *flags]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=one_thread
    )
    assert process.stdout is not None
    url = re.search(r"http://\S+?:\d+", process.stdout.readline())
    assert url is not None
    yield process, url[0]
    process.kill()
    process.communicate()


def read_until(process: subprocess.Popen[str], word: str) -> str:
    assert process.stdout is not None
    read = ""
    while word not in read:
        line = process.stdout.readline()
        assert line, read
        read += line
    return read


def test_it_answers_503_while_loading_then_serves_then_leaves_on_ctrl_c(server):
    process, url = server
    early = httpx.get(f"{url}/health", timeout=60)
    assert (early.status_code, "loading" in early.json()["reason"]) == (503, True)
    told = read_until(process, "try")
    assert "tiny, 127 tokens of context" in told
    assert "kind at strength 0" in told
    assert httpx.get(f"{url}/health").status_code == 200
    _, _, example_url, _, header, _, body = shlex.split(told.splitlines()[-1])
    reply = httpx.post(example_url, headers=[header.split(": ")], content=body, timeout=60)
    assert reply.json()["choices"][0]["guidance"]["mean_strength"] == 2
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    assert "Traceback" not in process.stderr.read()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_a_signal_while_loading_leaves_at_once(server, number):
    process, url = server
    httpx.get(f"{url}/health", timeout=60)
    process.send_signal(number)
    assert process.wait(30) == 128 + number
    assert "Traceback" not in process.stderr.read()


def complaint(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    assert main([str(arg) for arg in args]) == 1
    lines = capsys.readouterr().err.splitlines()
    (told,) = [line for line in lines if line and "Loading weights" not in line]
    return told


def test_what_cannot_be_loaded_is_told_in_one_line(policy, tmp_path, capsys):
    other = save_policy(tmp_path / "other", seed=1)
    corrupt = shutil.copytree(policy, tmp_path / "corrupt")
    for file in (corrupt / "model.safetensors", corrupt / "heads/kind/head.safetensors"):
        file.write_bytes(file.read_bytes()[:300])
    capsys.readouterr()
    serve = (capsys, "serve", "--port", 0, "--model")

    assert "no/such/model" in complaint(*serve, "no/such/model")
    assert str(corrupt) in complaint(*serve, corrupt)
    assert "corrupt" in complaint(*serve, policy, "--heads", corrupt / "heads/kind")
    mismatch = complaint(*serve, policy, "--heads", other / "heads/kind")
    assert "tiny" in mismatch
    assert "other" in mismatch
    assert "loaded: kind" in complaint(
        *serve, policy, "--heads", policy / "heads/kind", "--default-head", "x"
    )


def test_chat_loads_a_model_of_its_own_and_obeys_its_knobs(policy, capsys, monkeypatch):
    lines = iter(["hi", "/strength 3", "/reset", "hi", "/strength x", "/quit"])
    monkeypatch.setattr("builtins.input", lambda *_: next(lines))
    assert main(["chat", "--model", str(policy), "--heads", str(policy / "heads/kind")]) == 0
    shown = capsys.readouterr().out
    assert "value of `kind`" in shown
    assert "strength 0, KL 0.0 nats" in shown
    assert re.search(r"strength 3, KL (?!0\.0)", shown)
    assert "'x' is no number" in shown


def test_chat_tells_what_cannot_be_loaded(capsys):
    assert "no/such/model" in complaint(capsys, "chat", "--model", "no/such/model")
