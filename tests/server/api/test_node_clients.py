"""Clients of Node, against a real server whose policy says what a script has; run where they are installed.

npm install --no-save openai ai @ai-sdk/openai @ai-sdk/openai-compatible zod       (in the checkout's root)
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from trimtab.server.api.app import create_app
from trimtab.server.api.config import ApiConfig
from trimtab.server.api.models.profiles import read_profiles

SCRIPT = Path(__file__).with_name("node_clients.mjs")
MODULES = Path(__file__).parents[3] / "node_modules"
PACKAGES = ("openai", "ai", "@ai-sdk/openai", "@ai-sdk/openai-compatible", "zod")
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
ANSWER = '{"city": "Rome", "degrees": 30}'
TYPED = {"city": "Rome", "degrees": 30}


@pytest.fixture
def ask(make_scripted: Any, serve: Any) -> Any:
    """What a client got of a server that answers with these texts, one after another; and the engine."""

    def run(client: str, *replies: str) -> tuple[dict[str, Any], Any]:
        missing = [package for package in PACKAGES if not (MODULES / package).is_dir()]
        if shutil.which("node") is None or missing:
            pytest.skip(f"not installed: Node or its {', '.join(missing)}")
        script = iter(replies)
        engine = make_scripted(lambda _: next(script))
        config = ApiConfig(profiles=read_profiles({"kinder": {"strength": 3, "heads": {"kind": 1}}}))
        url = serve(create_app(engine, engine.tokenizer, config))
        command = ["node", str(SCRIPT), f"{url}/v1", client]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout), engine

    return run


def strengths(engine: Any) -> list[float]:
    return [request.guidance.strength for request in engine.submitted]


def test_openai_for_node(ask):
    found, engine = ask("openai", "Yes.", "Yes.", "Yes.", ANSWER, CALL, "Yes.", "Yes.")
    events = found.pop("events")
    assert found == {
        "chat": "Yes.",
        "stream": "Yes.",
        "logprobs": [2, 2, 2, 2],
        "typed": TYPED,
        "called": ["weather", '{"city": "Rome"}'],
        "response": "Yes.",
    }
    assert strengths(engine) == [2, 3, 0, 0, 0, 0, 0]
    assert (events[0], events[-1]) == ("response.created", "response.completed")
    assert engine.submitted[3].grammar is not None


def test_the_ai_sdk(ask):
    found, engine = ask("ai", "Yes.", "Yes.", ANSWER, *[CALL, "It is."] * 4, ANSWER)
    assert found == {
        "chat": "Yes.",
        "stream": "Yes.",
        "typed": TYPED,
        "called": "It is.",
        "called_in_stream": "It is.",
        "response": "It is.",
        "response_in_stream": "It is.",
        "typed_response": TYPED,
    }
    assert strengths(engine) == [2, 3, *[0] * 10]
    assert engine.submitted[2].grammar is not None
    assert "30 degrees in Rome" in engine.prompts[-2].partition("<tool>")[2]
