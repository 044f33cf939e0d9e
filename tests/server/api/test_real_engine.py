"""The API over the real engine: a tiny random model with two random heads."""

from __future__ import annotations

import json
import math
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from held_steps import held_steps
from tiny_models import SIZES, byte_tokenizer, save_random_head, save_random_model
from transformers import LlamaConfig

from trimtab.server.api.access.config import AccessConfig
from trimtab.server.api.app import create_app
from trimtab.server.api.config import ApiConfig
from trimtab.server.engine import grammar as grammar_module
from trimtab.server.engine.async_engine import AsyncEngine
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.request import Event, Finished

CHAT = "/v1/chat/completions"
TEMPLATE = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}>"
TEMPLATE_WITH_TOOLS = "{{ tools | length }}<tool_call>{% for m in messages %}{{ m['content'] }}{% endfor %}"
MESSAGES = [{"role": "user", "content": "héllo"}]
GREEDY = {"messages": MESSAGES, "temperature": 0, "max_tokens": 24, "ignore_eos": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_random_model(LlamaConfig(**SIZES), tmp_path_factory.mktemp("policy"))
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    save_random_head(folder / "heads", folder, "kind", seed=1)
    save_random_head(folder / "heads", folder, "brief", form="lowrank", seed=2)
    return folder


@pytest.fixture
def start(
    folder: Path, serve: Callable[[Any], str]
) -> Iterator[Callable[..., tuple[AsyncEngine, httpx.Client]]]:
    started: list[tuple[AsyncEngine, httpx.Client]] = []

    def run(
        template: str = TEMPLATE, access: AccessConfig | None = None, **options: Any
    ) -> tuple[AsyncEngine, httpx.Client]:
        heads = (folder / "heads/kind", folder / "heads/brief")
        config = EngineConfig(folder, heads, served_model_name="tiny", kv_cache_gib=0.01, **options)
        engine = AsyncEngine(lambda: Engine.from_config(config))
        engine.start()
        engine.wait_until_loaded()
        tokenizer = engine.engine.policy.tokenizer
        api = ApiConfig(default_head="kind", default_strength=1.0, chat_template=template)
        api = replace(api, access=access or AccessConfig())
        url = serve(create_app(engine, tokenizer, api))
        started.append((engine, httpx.Client(base_url=url, timeout=30)))
        return started[-1]

    yield run
    for engine, client in started:
        client.close()
        engine.stop()


@pytest.fixture
def client(start: Callable[[], tuple[AsyncEngine, httpx.Client]]) -> httpx.Client:
    return start()[1]


def chat(client: httpx.Client, **body: Any) -> dict[str, Any]:
    response = client.post(CHAT, json={**GREEDY, **body})
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]


def chunks(response: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in response.iter_lines():
        data = line.removeprefix("data: ")
        if data and data != "[DONE]":
            yield json.loads(data)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_whole_and_streamed_replies_say_the_same(client):
    guidance = {"strength": 2, "heads": {"kind": 1, "brief": -0.5}, "trace": True}
    body = {**GREEDY, "guidance": guidance, "logprobs": True, "top_logprobs": 2}
    whole = chat(client, **body)
    text, trace, logprobs, summary = "", [], [], None
    with client.stream("POST", CHAT, json={**body, "stream": True}) as response:
        for chunk in chunks(response):
            choice = chunk["choices"][0]
            text += choice["delta"].get("content", "")
            logprobs += (choice["logprobs"] or {}).get("content", [])
            trace += choice.get("guidance", {}).get("trace", [])
            summary = choice.get("guidance")
    assert text == whole["message"]["content"]
    assert logprobs == whole["logprobs"]["content"]
    assert {**summary, "trace": trace} == whole["guidance"]
    assert len(trace) == 24


def test_all_particles_are_the_same_whole_and_streamed(client):
    rule = {"kind": "smc", "particles": 3, "block": 4, "resample": 1}
    body = {**GREEDY, "temperature": 1, "seed": 5, "n": 3, "guidance": {"rule": rule}}
    whole = client.post(CHAT, json=body).json()["choices"]
    assert sum(choice["guidance"]["rule"]["weight"] for choice in whole) == pytest.approx(1)
    texts, summaries = ["", "", ""], {}
    with client.stream("POST", CHAT, json={**body, "stream": True}) as response:
        choices = [choice for chunk in chunks(response) for choice in chunk["choices"]]
    for choice in choices:
        texts[choice["index"]] += choice["delta"].get("content") or ""
        if choice["finish_reason"]:
            assert choice["index"] not in summaries
            summaries[choice["index"]] = choice["guidance"]
    assert texts == [choice["message"]["content"] for choice in whole]
    assert [summaries[i] for i in range(3)] == [choice["guidance"] for choice in whole]


def test_the_trace_adds_up_to_the_summary(client):
    guidance = chat(client, guidance={"strength": 2, "trace": True})["guidance"]
    trace = guidance["trace"]
    assert guidance["kl"] == pytest.approx(sum(entry["kl"] for entry in trace), rel=1e-5)
    assert guidance["kl"] > 0
    assert guidance["mean_strength"] == 2
    assert guidance["flips"] == sum(entry["flip"] for entry in trace)
    assert set(guidance["value"]) == set(guidance["reward"]) == {"kind"}


def test_strength_0_is_the_plain_model_and_still_measured(client):
    plain = chat(client, guidance={"strength": 0, "trace": True})
    again = chat(client, guidance={"strength": 0, "heads": {"brief": 1}})
    assert plain["message"] == again["message"]
    assert plain["guidance"]["kl"] == 0
    assert set(plain["guidance"]["value"]) == {"kind"}
    assert set(again["guidance"]["value"]) == {"brief"}
    assert plain["message"] != chat(client, guidance={"strength": 5})["message"]


def test_logprobs_are_of_the_tilt(client):
    choice = chat(client, guidance={"strength": 3, "trace": True}, logprobs=True)
    entries, trace = choice["logprobs"]["content"], choice["guidance"]["trace"]
    assert [entry["logprob"] for entry in entries] == [entry["logprob"] for entry in trace]
    assert any(abs(entry["logprob"] - entry["base_logprob"]) > 0.01 for entry in trace)


def test_a_request_does_not_depend_on_those_beside_it(client):
    bodies = [
        {**GREEDY, "guidance": {"strength": strength, "heads": {head: 1}}, "max_tokens": tokens}
        for tokens, (strength, head) in enumerate(
            [(s, h) for s in range(-2, 3) for h in ("kind", "brief")], 8
        )
    ]
    alone = [chat(client, **body)["message"] for body in bodies]
    with ThreadPoolExecutor(len(bodies)) as pool:
        together = list(pool.map(lambda body: chat(client, **body)["message"], bodies))
    assert together == alone


def test_a_seed_repeats_the_draw_and_choices_differ(client):
    body = {**GREEDY, "temperature": 1, "seed": 5, "n": 3}
    first, second = (client.post(CHAT, json=body).json()["choices"] for _ in range(2))
    assert [c["message"] for c in first] == [c["message"] for c in second]
    assert len({c["message"]["content"] for c in first}) == 3


def test_a_stop_string_is_removed_whole_and_streamed(client):
    text = chat(client)["message"]["content"]
    stop = text[5:7]
    choice = chat(client, stop=stop)
    assert choice["message"]["content"] == text[: text.index(stop)]
    assert choice["finish_reason"] == "stop"


def test_what_the_engine_refuses_arrives_as_a_400(client):
    response = client.post(CHAT, json={**GREEDY, "messages": [{"role": "user", "content": "x" * 500}]})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"
    assert "502 tokens" in response.json()["error"]["message"]
    assert chat(client)["finish_reason"] == "length"


WITHIN = {
    "messages": MESSAGES,
    "max_tokens": 60,
    "seed": 1,
    "structured_outputs": {"regex": "(é|[a-f]){3,9}-[0-9]{2}"},
    "guidance": {"strength": 4, "heads": {"kind": 1, "brief": -0.5}, "trace": True},
}


def test_a_reply_within_a_grammar_is_the_same_streamed_and_whole(client):
    whole = chat(client, ignore_eos=None, temperature=1, logprobs=True, top_logprobs=3, n=2, **WITHIN)
    assert re.fullmatch("(é|[a-f]){3,9}-[0-9]{2}", whole["message"]["content"])
    assert whole["finish_reason"] == "stop"
    assert all(math.isfinite(entry["kl"]) for entry in whole["guidance"]["trace"])
    body = {**WITHIN, "logprobs": True, "top_logprobs": 3, "n": 2, "stream": True}
    with client.stream("POST", CHAT, json=body) as response:
        mine = [c["choices"][0] for c in chunks(response) if c["choices"][0]["index"] == 0]
    assert "".join(c["delta"].get("content", "") for c in mine) == whole["message"]["content"]
    entries = [entry for c in mine for entry in (c["logprobs"] or {}).get("content", [])]
    assert entries == whole["logprobs"]["content"]
    assert mine[-1]["finish_reason"] == "stop"


def test_a_grammar_that_does_not_compile_is_a_400_and_one_that_leads_nowhere_ends_alone(client):
    refused = client.post(CHAT, json={**WITHIN, "structured_outputs": {"regex": "(a"}})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "structured_outputs.regex"
    assert "unclosed" in refused.json()["error"]["message"]
    dead = {**WITHIN, "structured_outputs": {"grammar": 'start: "ab" <[257]> "c"'}}
    failed = client.post(CHAT, json=dead)
    assert (failed.status_code, failed.json()["error"]["code"]) == (500, "engine_failed")
    assert "no token can come next" in failed.json()["error"]["message"]
    with client.stream("POST", CHAT, json={**dead, "stream": True}) as response:
        *_, last = chunks(response)
    assert "no token can come next" in last["error"]["message"]
    assert chat(client)["finish_reason"] == "length"


def test_grammars_that_take_long_to_compile_keep_no_other_request_waiting(client, monkeypatch):
    monkeypatch.setattr(grammar_module, "COMPILE_SECONDS", 1.0)
    known = {"structured_outputs": {"choice": ["a"]}}
    assert client.post(CHAT, json={"messages": MESSAGES, **known}).status_code == 200
    slow = [{"type": "integer", "multipleOf": 99999989 + i} for i in range(4)]
    with ThreadPoolExecutor(len(slow)) as pool:
        sent = [
            pool.submit(client.post, CHAT, json={**WITHIN, "structured_outputs": {"json": s}}) for s in slow
        ]
        time.sleep(0.1)
        start = time.monotonic()
        assert chat(client)["finish_reason"] == "length"
        assert client.post(CHAT, json={"messages": MESSAGES, **known}).status_code == 200
        assert time.monotonic() - start < 1.5
        answers = [future.result() for future in sent]
    assert {answer.status_code for answer in answers} == {400}
    assert all("too long" in answer.json()["error"]["message"] for answer in answers)


def test_a_client_that_leaves_frees_the_engine(start, monkeypatch):
    engine, client = start()
    aborted, abort = list[str](), engine.abort
    monkeypatch.setattr(engine, "abort", lambda name: (aborted.append(name), abort(name)))
    body = {**GREEDY, "max_tokens": 100}
    with held_steps(engine.engine, after=3):
        with client.stream("POST", CHAT, json={**body, "stream": True}) as response:
            next(chunks(response))
        with pytest.raises(httpx.ReadTimeout):
            client.post(CHAT, json=body, timeout=0.3)
        wait_until(lambda: len(aborted) == 2)
    wait_until(lambda: not engine.engine.has_work)
    assert chat(client, max_tokens=2)["finish_reason"] == "length"


def test_an_engine_that_dies_fails_what_runs_and_turns_the_rest_away(start, monkeypatch, caplog):
    engine, client = start()
    run, died, steps = engine.engine.runner.run, threading.Event(), count()

    def die_when_told(step: Any) -> Any:
        if next(steps) >= 3:
            died.wait(30)
            raise torch.AcceleratorError("an illegal access")
        return run(step)

    monkeypatch.setattr(engine.engine.runner, "run", die_when_told)
    with client.stream("POST", CHAT, json={**GREEDY, "max_tokens": 100, "stream": True}) as response:
        received = chunks(response)
        next(received)
        died.set()
        *_, last = received
    assert "illegal" not in last["error"]["message"]
    assert "illegal" in caplog.text
    health = client.get("/health")
    assert (health.status_code, "died" in health.json()["reason"]) == (503, True)
    refused = client.post(CHAT, json=GREEDY)
    assert (refused.status_code, refused.json()["error"]["type"]) == (503, "server_error")


def test_the_best_of_several_is_the_best_that_the_same_seed_draws(client):
    body = {**GREEDY, "temperature": 1, "seed": 3, "guidance": {"strength": -1}}
    drawn = client.post(CHAT, json={**body, "n": 6}).json()["choices"]
    best = client.post(CHAT, json={**body, "best_of": 6, "n": 2}).json()
    ranked = sorted(drawn, key=lambda choice: choice["guidance"]["reward"]["kind"])  # strength is negative
    assert [c["message"] for c in best["choices"]] == [c["message"] for c in ranked[:2]]
    assert best["usage"]["completion_tokens"] == 6 * 24


def test_speculative_rejection_spares_tokens_and_returns_a_whole_reply(client):
    body = {**GREEDY, "temperature": 1, "seed": 3, "best_of": 8}
    whole = client.post(CHAT, json=body).json()
    spared = client.post(CHAT, json={**body, "speculative_rejection": {"every": 4}}).json()
    again = client.post(CHAT, json={**body, "speculative_rejection": {"every": 4}}).json()
    assert whole["usage"]["completion_tokens"] == 8 * 24
    # 8 run for 4 tokens, 4 for 4, 2 for 4, 1 to the end; the step under way when they fall behind is lost.
    assert (
        8 * 4 + 4 * 4 + 2 * 4 + 12 <= spared["usage"]["completion_tokens"] <= 8 * 4 + 4 * 4 + 2 * 4 + 12 + 14
    )
    [choice] = spared["choices"]
    assert choice["finish_reason"] == "length"
    assert len(choice["message"]["content"]) > 0
    assert again["choices"] == spared["choices"]


def test_a_race_beside_others_leaves_no_blocks_behind(start):
    engine, client = start()
    body = {**GREEDY, "temperature": 1, "seed": 3, "best_of": 8, "speculative_rejection": {"every": 2}}
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda seed: client.post(CHAT, json={**body, "seed": seed}), range(6)))
    assert all(reply.status_code == 200 for reply in replies)
    wait_until(lambda: not engine.engine.has_work)
    blocks = engine.engine.scheduler.blocks
    assert blocks.num_free == blocks.num_usable


def test_a_score_an_echo_and_a_reply_agree(client):
    guidance = {"strength": 2, "heads": {"kind": 1, "brief": -0.5}}
    body = {"prompt": "once", "completion": " upon a time", "guidance": guidance}
    score = client.post("/v1/score", json=body).json()
    said = "".join(token["token"] for token in score["tokens"][:-1])
    assert said == " upon a time"
    ask = {"echo": True, "logprobs": 0, "max_tokens": 0, "prompt": "once upon a time", "guidance": guidance}
    echo = client.post("/v1/completions", json=ask).json()["choices"][0]["logprobs"]
    logprobs = [token["logprob"] for token in score["tokens"][:-1]]
    assert echo["token_logprobs"][4:] == pytest.approx(logprobs, abs=1e-4)
    assert score["kl"] == pytest.approx(sum(token["kl"] for token in score["tokens"]))
    assert set(score["reward"]) == {"kind", "brief"}
    ask |= {"prompt": "once upon a tim", "max_tokens": 1}
    whole = client.post("/v1/completions", json={**ask, "prompt_logprobs": 1}).json()["choices"][0]
    assert whole["logprobs"]["token_logprobs"][1:-1] == pytest.approx(echo["token_logprobs"][1:-1], abs=1e-4)
    assert len(whole["prompt_logprobs"]) == len(ask["prompt"])


DIE = {"type": "object", "properties": {"n": {"enum": [1, 2, 3]}}, "required": ["n"]}
TOOLS = {
    "tools": [
        {"type": "function", "function": {"name": "cast", "parameters": DIE}},
        {"type": "function", "function": {"name": "stop"}},
    ],
    "max_tokens": 100,
    "seed": 1,
    "logit_bias": {str(token): -100 for token in byte_tokenizer()("\t\n ").input_ids},
    "messages": [{"role": "user", "content": "!"}],
}


def test_demanded_calls_of_a_random_model_are_calls_by_any_rule_chosen_and_streamed(start):
    _, client = start(TEMPLATE_WITH_TOOLS)
    heads = {"strength": 4, "heads": {"kind": 1, "brief": -0.5}}
    body = {**TOOLS, "tool_choice": {"type": "function", "function": {"name": "cast"}}}
    bodies = [
        {**body, "guidance": {**heads, "rule": {"kind": "blockwise", "candidates": 2, "block": 8}}},
        {**body, "guidance": {**heads, "max_kl": 0.1}, "best_of": 2, "majority": {"pattern": "[0-9]"}},
        {**body, "guidance": heads, "tool_choice": "required", "parallel_tool_calls": False, "n": 2},
    ]
    replies = [client.post(CHAT, json=body).json() for body in bodies]
    for reply in replies:
        for choice in reply["choices"]:
            [call] = choice["message"]["tool_calls"]
            assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
            arguments = json.loads(call["function"]["arguments"])
            assert arguments in (
                [{"n": n} for n in (1, 2, 3)] if call["function"]["name"] == "cast" else [{}]
            )
            assert math.isfinite(choice["guidance"]["kl"])
    with client.stream("POST", CHAT, json={**bodies[0], "stream": True}) as response:
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks(response)]
    pieces = [call["function"] for delta in deltas for call in delta.get("tool_calls", [])]
    assert [piece.get("name") for piece in pieces] == ["cast"] + [None] * (len(pieces) - 1)
    [call] = replies[0]["choices"][0]["message"]["tool_calls"]
    assert "".join(piece["arguments"] for piece in pieces) == call["function"]["arguments"]


def test_what_ends_a_reply_is_told_whole_and_streamed(client):
    [token] = client.post("/tokenize", json={"prompt": "a", "add_special_tokens": False}).json()["tokens"]
    bias = {str(token): 100}
    body = {**GREEDY, "logit_bias": bias, "stop_token_ids": [token], "min_tokens": 1}
    whole = chat(client, **body)
    assert (whole["finish_reason"], whole["stop_reason"]) == ("stop", token)
    with client.stream("POST", CHAT, json={**body, "stream": True}) as response:
        last = [chunk["choices"][0] for chunk in chunks(response)][-1]
    assert (last["finish_reason"], last["stop_reason"]) == ("stop", token)
    kept = chat(client, logit_bias=bias, stop="aaa", include_stop_str_in_output=True)
    assert (kept["message"]["content"], kept["stop_reason"]) == ("aaa", "aaa")


def test_keys_share_the_engine_fairly_and_no_cached_prefix(start, tmp_path: Path, monkeypatch):
    (tmp_path / "keys").write_text("ana:ana-has-a-key\nbo:bo-has-a-key\n")
    engine, client = start(access=AccessConfig(api_keys=tmp_path / "keys"), max_num_seqs=2)

    def ask(name: str, **fields: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {name}-has-a-key"}
        return client.post("/v1/completions", json={"prompt": "abc " * 10, **fields}, headers=headers)

    asked, submit = dict[str, str](), engine.submit
    monkeypatch.setattr(engine, "submit", lambda r: (asked.update({r.request_id: r.tenant}), submit(r))[1])
    ended, step = list[str](), engine.engine.step

    def step_and_note() -> list[Event]:
        events = step()
        ended.extend(asked[event.request_id] for event in events if isinstance(event, Finished))
        return events

    monkeypatch.setattr(engine.engine, "step", step_and_note)
    with ThreadPoolExecutor(13) as threads:
        with held_steps(engine.engine, after=3):
            long = [threads.submit(ask, "ana", max_tokens=40, ignore_eos=True) for _ in range(12)]
            wait_until(lambda: len(asked) == 12)
            short = threads.submit(ask, "bo", max_tokens=1)
            wait_until(lambda: len(asked) == 13)
        assert all(each.result().status_code == 200 for each in long)
    assert sorted(ended) == ["ana"] * 12 + ["bo"]
    assert ended.index("bo") <= 2, "after those that had begun"
    assert short.result().json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    usages = [ask(name, max_tokens=1).json()["usage"] for name in ("ana", "bo", "bo")]
    cached = [usage["prompt_tokens_details"]["cached_tokens"] for usage in usages]
    assert (cached[0], cached[2]) == (32, 32)


def test_a_stream_goes_on_bit_for_bit_while_heads_come_and_go(start, folder: Path, tmp_path: Path):
    (tmp_path / "admins").write_text("root:admin-has-a-key\n")
    for kind, heads in (("mine", "heads/kind"), ("broken", "heads/brief")):
        shutil.copytree(folder / heads, tmp_path / "heads" / kind)
    (tmp_path / "heads/broken/head.safetensors").write_bytes(b"no tensors")
    access = AccessConfig(admin_keys=tmp_path / "admins", heads_dir=tmp_path / "heads")
    _, client = start(access=access, num_vacant_heads=2)
    steered = {**GREEDY, "max_tokens": 90, "stream": True}
    steered["guidance"] = {"strength": 3, "heads": {"brief": 1, "kind": -1}, "trace": True}

    def change(what: str, **body: str) -> httpx.Response:
        return client.post(what, json=body, headers={"Authorization": "Bearer admin-has-a-key"})

    def stream(meanwhile: Callable[[], None]) -> list[Any]:
        told = []
        with client.stream("POST", CHAT, json=steered) as response:
            for number, line in enumerate(response.iter_lines()):
                if number == 6:
                    meanwhile()
                if line.startswith("data: {"):
                    told.append(json.loads(line[6:])["choices"])
        return told

    def come_and_go() -> None:
        for name in ("one", "two"):
            assert change("/v1/load_head", name=name, path="mine").status_code == 200
        refused = change("/v1/load_head", name="three", path="mine")
        assert (refused.status_code, "no room" in refused.text) == (400, True)
        refused = change("/v1/load_head", name="bad", path="broken")
        assert (refused.status_code, "corrupt" in refused.text) == (400, True)
        assert change("/v1/unload_head", name="brief").status_code == 200

    alone = stream(lambda: None)
    assert len(alone) > 40
    assert stream(come_and_go) == alone
    served = client.get("/v1/models/tiny").json()
    assert [head["name"] for head in served["heads"]] == ["kind", "one", "two"]
