"""Frameworks' own clients, against a real server whose policy says what a script has: tools, typed outputs.

Which of them are installed decides what runs: `pip install -e '.[clients]'`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import openai
import pydantic
import pytest

from trimtab.server.api.app import create_app
from trimtab.server.api.config import ApiConfig
from trimtab.server.api.models.profiles import read_profiles

ASKED = "Is it warm in Rome?"
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
ANSWER = '{"city": "Rome", "degrees": 30}'


class Answer(pydantic.BaseModel):
    """How warm a city is."""

    city: str
    degrees: int


EXPECTED = Answer(city="Rome", degrees=30)


def weather(city: str) -> str:
    """Tells the weather of a city.

    Args:
        city: its name.
    """
    return f"30 degrees in {city}"


def call(name: str, arguments: str = ANSWER) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


class Server:
    """url: up to /v1. engine: what it got."""

    def __init__(self, url: str, engine: Any) -> None:
        self.url, self.engine = f"{url}/v1", engine

    @property
    def prompts(self) -> list[str]:
        return self.engine.prompts


@pytest.fixture
def say(make_scripted: Any, serve: Callable[[Any], str]) -> Callable[..., Server]:
    """A server that answers with these texts, one after another."""

    def start(*replies: str) -> Server:
        script: Iterator[str] = iter(replies)
        engine = make_scripted(lambda _: next(script))
        config = ApiConfig(profiles=read_profiles({"kinder": {"strength": 3, "heads": {"kind": 1}}}))
        return Server(serve(create_app(engine, engine.tokenizer, config)), engine)

    return start


def assert_told(prompt: str) -> None:
    """That the template got the call as an object, and its result."""
    assert '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>' in prompt
    assert "30 degrees in Rome" in prompt.partition("<tool>")[2]
    assert prompt.endswith(" of weather<assistant>")


MESSAGES = [{"role": "user", "content": ASKED}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def test_openai_parses_typed_replies_and_typed_calls(say):
    server = say(ANSWER, call("Answer"))
    with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
        parse = client.chat.completions.parse
        reply = parse(model="script", messages=MESSAGES, response_format=Answer)
        assert reply.choices[0].message.parsed == EXPECTED
        tools = [openai.pydantic_function_tool(Answer)]
        message = parse(model="script", messages=MESSAGES, tools=tools).choices[0].message
        assert message.tool_calls[0].function.parsed_arguments == EXPECTED
        assert message.content is None
    assert server.engine.submitted[1].grammar is not None  # its tools are strict


def test_openai_streams_calls_and_sends_their_results_back(say):
    server = say(f"Let me see. {CALL}", "Yes.", call("Answer"))
    with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
        stream = client.chat.completions.create(
            model="script", messages=MESSAGES, tools=[WEATHER], stream=True
        )
        deltas = [chunk.choices[0].delta for chunk in stream]
        assert "".join(delta.content or "" for delta in deltas) == "Let me see."
        pieces = [piece for delta in deltas for piece in delta.tool_calls or []]
        assert [piece.function.name for piece in pieces] == ["weather"] + [None] * (len(pieces) - 1)
        assert "".join(piece.function.arguments for piece in pieces) == '{"city": "Rome"}'
        assert len(pieces) > 2
        function = {"name": "weather", "arguments": '{"city": "Rome"}'}
        history = [
            *MESSAGES,
            {
                "role": "assistant",
                "tool_calls": [{"id": pieces[0].id, "type": "function", "function": function}],
            },
            {"role": "tool", "tool_call_id": pieces[0].id, "content": weather("Rome")},
        ]
        reply = client.chat.completions.create(model="script", messages=history, tools=[WEATHER])
        assert reply.choices[0].message.content == "Yes."
        assert_told(server.prompts[-1])
        tools = [openai.pydantic_function_tool(Answer)]
        with client.chat.completions.stream(model="script", messages=MESSAGES, tools=tools) as events:
            kinds = {event.type for event in events}
            message = events.get_final_completion().choices[0].message
    assert "tool_calls.function.arguments.delta" in kinds
    assert message.tool_calls[0].function.parsed_arguments == EXPECTED
    assert message.content is None


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA", "JSON", "PARALLEL_TOOLS"])
def test_instructor(say, mode):
    instructor = pytest.importorskip("instructor")
    replies = [call("Answer"), call("PartialAnswer")] if "TOOLS" in mode else [ANSWER, ANSWER]
    server = say(*replies)
    with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as plain:
        client = instructor.from_openai(plain, mode=instructor.Mode[mode])
        create, create_partial = client.chat.completions.create, client.chat.completions.create_partial
        if mode == "PARALLEL_TOOLS":
            found = create(model="script", messages=MESSAGES, response_model=Iterable[Answer])
            assert list(found) == [EXPECTED]
            return
        whole = create(model="script", messages=MESSAGES, response_model=Answer)
        *_, last = create_partial(model="script", messages=MESSAGES, response_model=Answer)
    assert whole.model_dump() == last.model_dump() == EXPECTED.model_dump()  # of classes made from Answer
    assert all(request.grammar is not None for request in server.engine.submitted)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("kind", "output"),
    [
        ("OpenAIChatModel", "ToolOutput"),
        ("OpenAIChatModel", "NativeOutput"),
        ("OpenAIChatModel", "PromptedOutput"),
        ("OpenAIResponsesModel", "ToolOutput"),
        ("OpenAIResponsesModel", "NativeOutput"),
    ],
)
def test_pydantic_ai(say, kind, output, stream):
    ai = pytest.importorskip("pydantic_ai")
    from pydantic_ai.models import openai as models  # noqa: PLC0415 (optional)
    from pydantic_ai.providers.openai import OpenAIProvider  # noqa: PLC0415

    server = say(CALL, call("final_result") if output == "ToolOutput" else ANSWER)
    model = getattr(models, kind)("script", provider=OpenAIProvider(base_url=server.url, api_key="none"))
    agent = ai.Agent(model, output_type=getattr(ai, output)(Answer), tools=[weather], retries=0)

    async def run() -> Any:
        if not stream:
            return (await agent.run(ASKED)).output
        async with agent.run_stream(ASKED) as running:
            return await running.get_output()

    assert asyncio.run(run()) == EXPECTED
    assert_told(server.prompts[-1])


@pytest.mark.parametrize("method", ["function_calling", "json_schema", "json_mode"])
def test_langchain_with_structured_output(say, method):
    langchain = pytest.importorskip("langchain_openai")
    server = say(*[call("Answer") if method == "function_calling" else ANSWER] * 2)
    model = langchain.ChatOpenAI(base_url=server.url, api_key="none", model="script", max_retries=0)
    typed = model.with_structured_output(Answer, method=method)
    assert typed.invoke(ASKED) == EXPECTED
    *_, last = typed.stream(ASKED)
    assert last == EXPECTED


@pytest.mark.parametrize("responses", [False, True])
def test_langchain_with_bound_tools(say, responses):
    langchain = pytest.importorskip("langchain_openai")
    from langchain_core.messages import HumanMessage, ToolMessage  # noqa: PLC0415 (optional)

    server = say(CALL, CALL, "Yes.", CALL)
    model = langchain.ChatOpenAI(
        base_url=server.url, api_key="none", model="script", max_retries=0, use_responses_api=responses
    )
    bound, first = model.bind_tools([weather]), HumanMessage(ASKED)
    whole = bound.invoke([first])
    pieces = list(bound.stream([first]))
    streamed = pieces[0]
    for piece in pieces[1:]:
        streamed += piece
    for message in (whole, streamed):
        [found] = message.tool_calls
        assert (found["name"], found["args"]) == ("weather", {"city": "Rome"})
        assert not message.text
    result = ToolMessage(weather("Rome"), tool_call_id=whole.tool_calls[0]["id"])
    assert bound.invoke([first, whole, result]).text == "Yes."
    assert_told(server.prompts[-1])
    forced = model.bind_tools([weather], tool_choice="any", strict=True)
    assert forced.invoke(ASKED).tool_calls[0]["args"] == {"city": "Rome"}
    assert server.engine.submitted[-1].grammar is not None


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("is_typed", [False, True])
@pytest.mark.parametrize("kind", ["OpenAIChatCompletionsModel", "OpenAIResponsesModel"])
def test_openai_agents(say, kind, stream, is_typed):
    agents = pytest.importorskip("agents")
    server = say(CALL, ANSWER)

    async def run() -> Any:
        async with openai.AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
            agent = agents.Agent(
                "sage",
                model=getattr(agents, kind)("script", client),
                tools=[agents.function_tool(weather)],
                output_type=Answer if is_typed else None,
            )
            options = agents.RunConfig(tracing_disabled=True)
            if not stream:
                return (await agents.Runner.run(agent, ASKED, run_config=options)).final_output
            running = agents.Runner.run_streamed(agent, ASKED, run_config=options)
            kinds = [event.type async for event in running.stream_events()]
            assert "raw_response_event" in kinds
            return running.final_output

    found = asyncio.run(run())
    assert (found if is_typed else Answer(**json.loads(found))) == EXPECTED
    assert_told(server.prompts[-1])


def ask_openai(url: str, model: str, stream: bool, **extra: Any) -> str:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        reply = client.chat.completions.create(
            model=model, messages=MESSAGES, stream=stream, extra_body=extra
        )
        return text_of(reply, stream)


def ask_openai_responses(url: str, model: str, stream: bool, **extra: Any) -> str:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        reply = client.responses.create(model=model, input=ASKED, stream=stream, extra_body=extra)
        if not stream:
            return reply.output_text
        return "".join(event.delta for event in reply if event.type == "response.output_text.delta")


def ask_instructor(url: str, model: str, stream: bool, **extra: Any) -> str:
    instructor = pytest.importorskip("instructor")
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as plain:
        create = instructor.from_openai(plain).chat.completions.create
        return text_of(
            create(model=model, messages=MESSAGES, response_model=None, stream=stream, extra_body=extra),
            stream,
        )


def text_of(reply: Any, stream: bool) -> str:
    if not stream:
        return str(reply.choices[0].message.content)
    return "".join(chunk.choices[0].delta.content or "" for chunk in reply if chunk.choices)


def ask_pydantic_ai(url: str, model: str, stream: bool, **extra: Any) -> str:
    ai = pytest.importorskip("pydantic_ai")
    from pydantic_ai.models.openai import OpenAIChatModel  # noqa: PLC0415 (optional)
    from pydantic_ai.providers.openai import OpenAIProvider  # noqa: PLC0415

    chat = OpenAIChatModel(model, provider=OpenAIProvider(base_url=url, api_key="none"))
    agent = ai.Agent(chat, model_settings={"extra_body": extra})

    async def run() -> str:
        if not stream:
            return str((await agent.run(ASKED)).output)
        async with agent.run_stream(ASKED) as running:
            return str(await running.get_output())

    return asyncio.run(run())


def ask_langchain(url: str, model: str, stream: bool, **extra: Any) -> str:
    langchain = pytest.importorskip("langchain_openai")
    chat = langchain.ChatOpenAI(base_url=url, api_key="none", model=model, max_retries=0, extra_body=extra)
    return "".join(piece.text for piece in (chat.stream(ASKED) if stream else [chat.invoke(ASKED)]))


def ask_agents(url: str, model: str, stream: bool, **extra: Any) -> str:
    agents = pytest.importorskip("agents")

    async def run() -> str:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            chat = agents.OpenAIChatCompletionsModel(model, client)
            agent = agents.Agent("sage", model=chat, model_settings=agents.ModelSettings(extra_body=extra))
            options = agents.RunConfig(tracing_disabled=True)
            if not stream:
                return str((await agents.Runner.run(agent, ASKED, run_config=options)).final_output)
            running = agents.Runner.run_streamed(agent, ASKED, run_config=options)
            async for _ in running.stream_events():
                pass
            return str(running.final_output)

    return asyncio.run(run())


def ask_litellm(url: str, model: str, stream: bool, **extra: Any) -> str:
    return text_of(litellm_chat(url, model=f"openai/{model}", stream=stream, extra_body=extra), stream)


def litellm_chat(url: str, **fields: Any) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it downloads one
        litellm = pytest.importorskip("litellm")
    return litellm.completion(messages=MESSAGES, api_base=url, api_key="none", **fields)


def ask_llm(url: str, model: str, stream: bool, **extra: Any) -> str:
    assert not extra, "it has no way to send them"
    return str(llm_chat(url, model).prompt(ASKED, stream=stream, key="none").text())


def llm_chat(url: str, model: str = "script") -> Any:
    pytest.importorskip("llm")
    from llm.default_plugins.openai_models import Chat  # noqa: PLC0415 (optional)

    return Chat("ours", model_name=model, api_base=url, supports_schema=True, supports_tools=True)


ASK = [ask_openai, ask_openai_responses, ask_instructor, ask_pydantic_ai, ask_langchain, ask_agents]
ASK += [ask_litellm, ask_llm]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("ask", ASK)
def test_every_client_chats_and_steers_by_a_field_or_a_profile(say, ask, stream):
    server = say("Yes.", "Yes.", "Yes.")
    assert ask(server.url, "script", stream) == ask(server.url, "script:kinder", stream) == "Yes."
    strengths = [request.guidance.strength for request in server.engine.submitted]
    assert strengths == [0, 3]
    if ask is ask_llm:  # a profile is its only way
        return
    assert ask(server.url, "script", stream, guidance={"strength": 2, "heads": {"kind": 1}}) == "Yes."
    guidance = server.engine.submitted[-1].guidance
    assert (guidance.strength, guidance.heads) == (2, (("kind", 1.0),))


def test_langchain_and_litellm_read_log_probabilities(say):
    server = say("Yes.", "Yes.")
    langchain = pytest.importorskip("langchain_openai")
    chat = langchain.ChatOpenAI(base_url=server.url, api_key="none", model="script", logprobs=True)
    assert len(chat.invoke(ASKED).response_metadata["logprobs"]["content"]) == 4
    reply = litellm_chat(server.url, model="openai/script", logprobs=True, top_logprobs=2)
    assert [len(entry.top_logprobs) for entry in reply.choices[0].logprobs.content] == [2] * 4


def test_litellm_calls_tools_and_gets_typed_replies(say):
    server = say(CALL, CALL, ANSWER)
    whole = litellm_chat(server.url, model="openai/script", tools=[WEATHER])
    streamed = litellm_chat(server.url, model="openai/script", tools=[WEATHER], stream=True)
    pieces = [piece for chunk in streamed for piece in chunk.choices[0].delta.tool_calls or []]
    [called] = whole.choices[0].message.tool_calls
    assert called.function.name == pieces[0].function.name == "weather"
    assert called.function.arguments == '{"city": "Rome"}'
    assert "".join(piece.function.arguments for piece in pieces) == '{"city": "Rome"}'
    typed = litellm_chat(server.url, model="openai/script", response_format=Answer)
    assert Answer.model_validate_json(typed.choices[0].message.content) == EXPECTED
    assert server.engine.submitted[-1].grammar is not None


@pytest.mark.parametrize("stream", [False, True])
def test_llm_calls_tools_and_gets_typed_replies(say, stream):
    server = say(CALL, "Yes.", ANSWER)
    chain = llm_chat(server.url).chain(ASKED, tools=[weather], stream=stream, key="none")
    assert chain.text() == "Yes."
    assert_told(server.prompts[-1])
    typed = llm_chat(server.url).prompt(ASKED, schema=Answer, stream=stream, key="none")
    assert Answer.model_validate_json(typed.text()) == EXPECTED
    assert server.engine.submitted[-1].grammar is not None
