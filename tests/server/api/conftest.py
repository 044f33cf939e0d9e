"""A deterministic engine behind the real application, and ways to reach it."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from trimtab.server.api.access.slow import timed_protocol
from trimtab.server.api.app import create_app
from trimtab.server.api.config import ApiConfig
from trimtab.server.engine.grammar import Grammar, Grammars
from trimtab.server.engine.request import (
    Aborted,
    ChoiceDone,
    Delta,
    EngineInfo,
    EngineStats,
    Event,
    ExpertInfo,
    Failed,
    FailureReason,
    Finished,
    FinishReason,
    GrammarSpec,
    GuidanceSummary,
    HeadInfo,
    InvalidRequestError,
    Request,
    TokenRecord,
    TokenTrace,
    check_request,
)

MAX_MODEL_LEN = 100
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
HEADS = {
    "kind": HeadInfo(
        "kind",
        has_advantage=True,
        has_value=True,
        has_reward=True,
        trained_on="pairs",
        value_per_advantage=0.1,
    ),
    "brief": HeadInfo("brief", has_advantage=True, has_value=False, has_reward=False, trained_on="pairs"),
    "meter": HeadInfo("meter", has_advantage=False, has_value=True, has_reward=False, trained_on="scores"),
}
EXPERTS = (ExpertInfo("tuned", MAX_MODEL_LEN), ExpertInfo("short", 50))


def make_tokenizer(chat_template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """One token per byte (ids 0…255 in the byte-level alphabet's order) and `<eos>`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([AddedToken("<eos>", special=True)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<eos>")
    tokenizer.chat_template = chat_template
    return tokenizer


@dataclass
class EchoEngine:
    """Answers with what is given, or with the prompt's own tokens, one per step; choice i leaves out the
    first i.

    fail_after: ends requests with Failed after so many tokens. hold_after: never goes on after so many.
    bug: raised instead of the first token.
    """

    tokenizer: Any
    info: EngineInfo
    status: str = "ready"
    stats: EngineStats = field(
        default_factory=lambda: EngineStats(num_running=2, num_waiting=3, cache_usage=0.25, prefix_hits=7)
    )
    fail_after: int | None = None
    failure_reason: FailureReason = "failed"
    hold_after: int | None = None
    bug: Exception | None = None
    prepared: list[GrammarSpec] = field(default_factory=list)
    submitted: list[Request] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    running: dict[str, asyncio.Event] = field(default_factory=dict)

    async def prepare(self, grammar: GrammarSpec) -> None:
        self.prepared.append(grammar)

    async def submit(self, request: Request) -> AsyncIterator[Event]:
        check_request(request, self.info)
        if 255 in request.prompt_token_ids:
            raise InvalidRequestError("token 255 is refused by this engine", "prompt")
        self.submitted.append(request)
        self.running[request.request_id] = asyncio.Event()
        return self._events(request)

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)
        self.running.pop(request_id).set()

    async def load_head(self, folder: Path, name: str) -> None:
        self.info = replace(self.info, heads=(*self.info.heads, replace(HEADS["brief"], name=name)))

    async def unload_head(self, name: str) -> None:
        self.info = replace(self.info, heads=tuple(h for h in self.info.heads if h.name != name))

    async def _events(self, request: Request) -> AsyncIterator[Event]:
        name, sampling = request.request_id, request.sampling
        stopped = self.running[name]
        for index in range(sampling.n):
            whole = self.reply_to(request, index)
            reply = whole[: sampling.max_tokens]
            length = 0
            for position, token in enumerate(reply):
                if self.bug is not None:
                    raise self.bug
                if position == self.fail_after:
                    del self.running[name]
                    yield Failed(name, "the tensor is on fire", self.failure_reason)
                    return
                if position == self.hold_after:
                    await stopped.wait()
                await asyncio.sleep(0)
                if stopped.is_set():
                    yield Aborted(name)
                    return
                delta = self._delta(request, index, position, token)
                delta.offsets = (length,)
                length += len(delta.text)
                yield delta
            limited = request.given or len(whole) > sampling.max_tokens
            yield self._choice_done(request, index, len(reply), "length" if limited else "stop")
        del self.running[name]
        yield Finished(name, len(request.prompt_token_ids), 2, sampling.n * len(reply))

    def reply_to(self, request: Request, index: int) -> Sequence[int]:
        return request.given or request.prompt_token_ids[index:]

    def _delta(self, request: Request, index: int, position: int, token: int) -> Delta:
        top = tuple((token + i, -1.0 - i) for i in range(request.sampling.logprobs or 0))
        trace = None
        if request.guidance.trace:
            values = tuple((head, 0.1 * position) for head, _ in request.guidance.heads)
            base_top = ((65, -0.5), (66, -1.5), (67, float("-inf")))
            trace = TokenTrace(values, 0.25, request.guidance.strength, 2.0, -1.25, False, base_top)
        record = TokenRecord(token, -1.0, top, trace)
        text = self.tokenizer.decode([token], skip_special_tokens=True)
        return Delta(request.request_id, index, text, (record,))

    def _choice_done(self, request: Request, index: int, length: int, reason: FinishReason) -> ChoiceDone:
        values = tuple((head, 0.5) for head, _ in request.guidance.heads)
        summary = GuidanceSummary(0.25 * length, request.guidance.strength, values, (), 1)
        return ChoiceDone(request.request_id, index, reason, summary, length)


def make_engine(*heads: str, chat_template: str | None = TEMPLATE) -> EchoEngine:
    """heads: names out of HEADS."""
    tokenizer = make_tokenizer(chat_template)
    infos = tuple(HEADS[name] for name in heads)
    info = EngineInfo("echo", MAX_MODEL_LEN, len(tokenizer), (256,), infos, created=1, experts=EXPERTS)
    return EchoEngine(tokenizer, info)


@dataclass
class ScriptedEngine(EchoEngine):
    """A policy that says what a script has for its prompt, whose grammars are compiled and held to: a reply
    that leaves its grammar fails where it does."""

    script: Callable[[str], str] = str
    prompts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.grammars = Grammars(self.tokenizer, len(self.tokenizer), self.info.eos_token_ids)

    async def prepare(self, grammar: GrammarSpec) -> None:
        await super().prepare(grammar)
        self.grammars.compile(grammar)

    def reply_to(self, request: Request, index: int) -> Sequence[int]:
        self.prompts.append(self.tokenizer.decode(request.prompt_token_ids))
        reply = self.tokenizer.encode(self.script(self.prompts[-1]))
        if request.grammar is not None:
            self._follow(self.grammars.compile(request.grammar).copy(), reply)
        return reply

    def _follow(self, grammar: Grammar, reply: Sequence[int]) -> None:
        for position, token in enumerate(reply):
            allowed = np.unpackbits(grammar.mask().view(np.uint8), bitorder="little")
            assert allowed[token], f"not allowed: {self.tokenizer.decode(reply[: position + 1])}"
            grammar.take(token)
        end = self.info.eos_token_ids[0]
        assert grammar.is_over or np.unpackbits(grammar.mask().view(np.uint8), bitorder="little")[end], (
            f"not over: {self.tokenizer.decode(reply)}"
        )


HERMES = (
    "{% if tools %}<tools>{{ tools | tojson }}</tools>call so: <tool_call>{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{% if m.content is not none %}{{ m.content }}{% endif %}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
    "{% if m.role == 'tool' %} of {{ m.name }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
LLAMA = HERMES.replace("<tool_call>", '{"name": function name, "parameters": its arguments}').replace(
    "</tool_call>", ""
)
TOOL_TEMPLATES = {"hermes": HERMES, "llama3_json": LLAMA}


@pytest.fixture
def make_scripted() -> Callable[..., ScriptedEngine]:
    def make(
        script: Callable[[str], str] | str, template: str = "hermes", special: Sequence[str] = ()
    ) -> ScriptedEngine:
        tokenizer = make_tokenizer(TOOL_TEMPLATES.get(template, template))
        tokenizer.add_tokens([AddedToken(token, special=True) for token in special], special_tokens=True)
        info = EngineInfo("script", 100_000, len(tokenizer), (256,), (HEADS["kind"],), created=1)
        answer = (lambda _: script) if isinstance(script, str) else script
        return ScriptedEngine(tokenizer, info, script=answer)

    return make


def make_client(engine: EchoEngine, config: ApiConfig | None = None) -> httpx.AsyncClient:
    app = create_app(engine, engine.tokenizer, config)  # type: ignore[arg-type]
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://trimtab")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(name="make_engine")
def make_engine_fixture() -> Callable[..., EchoEngine]:
    return make_engine


@pytest.fixture(name="make_client")
def make_client_fixture() -> Callable[..., httpx.AsyncClient]:
    return make_client


@pytest.fixture
def engine() -> EchoEngine:
    return make_engine("kind", "brief", "meter")


@pytest.fixture
async def client(engine: EchoEngine) -> AsyncIterator[httpx.AsyncClient]:
    async with make_client(engine, ApiConfig(default_head="kind", default_strength=1.0)) as connected:
        yield connected


@pytest.fixture
def serve() -> Iterator[Callable[[Any], str]]:
    """Serves an application with uvicorn on a free port; returns its URL."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(app: Any) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, http=timed_protocol(30.0)))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        running.append((server, thread))
        while not server.started:
            time.sleep(0.005)
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join()
