"""The terminal chat over a scripted server."""

from __future__ import annotations

import io
import json

import httpx
import pytest
from rich.console import Console

from trimtab.guidance.errors import UserError
from trimtab.server.commands.chat.run import converse, tint
from trimtab.server.commands.chat.session import ChatSession, Quit

MODEL = {
    "id": "m",
    "default_head": "kind",
    "default_strength": 1.0,
    "heads": [{"name": "kind", "has_value": True}, {"name": "brief", "has_value": False}],
}
SUMMARY = {"kl": 3.14, "mean_strength": 2.0, "value": {}, "reward": {"kind": 0.5}, "flips": 4}


def sse(*choices: dict) -> bytes:
    chunks = [json.dumps({"choices": [choice]}) for choice in choices]
    return "".join(f"data: {chunk}\n\n" for chunk in [*chunks, "[DONE]"]).encode()


def choice(text: str, value: float | None = None) -> dict:
    trace = [] if value is None else [{"value": {"kind": value}}]
    return {"delta": {"content": text}, "finish_reason": None, "guidance": {"trace": trace}}


DONE = {"delta": {}, "finish_reason": "stop", "guidance": SUMMARY}
REPLY = sse(
    {"delta": {"role": "assistant", "content": ""}, "finish_reason": None},
    choice("Hel", -2.5),
    choice("lo", 1.0),
    DONE,
)


class Server:
    """Answers every chat request with `reply` and keeps what was asked."""

    def __init__(self) -> None:
        self.reply: bytes = REPLY
        self.status = 200
        self.asked: list[dict] = []
        self.client = httpx.Client(transport=httpx.MockTransport(self.answer), base_url="http://t")

    def answer(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [MODEL]})
        self.asked.append(json.loads(request.content))
        return httpx.Response(self.status, content=self.reply, headers={"content-type": "application/json"})


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def session(server) -> ChatSession:
    return ChatSession.connect(server.client)


def test_a_reply_comes_in_pieces_with_values_and_is_remembered(session, server):
    pieces = [(piece.text, piece.value) for piece in session.say("hi")]
    assert pieces == [("", None), ("Hel", -2.5), ("lo", 1.0), ("", None)]
    assert session.messages == [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello"}]
    assert session.summary == SUMMARY
    assert server.asked[0]["guidance"] == {"trace": True}


def test_the_knobs_reach_the_next_request(session, server):
    session.command("/strength -2.5")
    session.command("/heads kind=1, brief=0.5")
    list(session.say("hi"))
    assert server.asked[0]["guidance"] == {
        "trace": True,
        "strength": -2.5,
        "heads": {"kind": 1.0, "brief": 0.5},
    }
    session.command("/heads")
    list(session.say("hi"))
    assert server.asked[1]["guidance"] == {"trace": True, "strength": -2.5}


def test_controllers_reach_the_next_request_as_the_api_spells_them(session, server):
    session.command("/control target=kind:1.5, horizon=8,max_kl=0.1")
    session.command("/strength 3")
    list(session.say("hi"))
    assert server.asked[0]["guidance"] == {
        "trace": True,
        "strength": 3.0,
        "target": {"head": "kind", "value": 1.5},
        "horizon": 8,
        "max_kl": 0.1,
    }
    session.command("/control")
    list(session.say("hi"))
    assert server.asked[1]["guidance"] == {"trace": True, "strength": 3.0}


def test_a_rule_reaches_the_next_request_as_the_api_spells_it(session, server):
    session.command("/rule smc, particles=4,resample=0.25,proposal=tilt")
    list(session.say("hi"))
    rule = {"kind": "smc", "particles": 4, "resample": 0.25, "proposal": "tilt"}
    assert server.asked[0]["guidance"] == {"trace": True, "rule": rule}
    session.command("/rule contrast,gamma=2,negative_prompt=Be rude, if you can.")
    list(session.say("hi"))
    rule = {"kind": "contrast", "gamma": 2, "negative_prompt": "Be rude, if you can."}
    assert server.asked[1]["guidance"] == {"trace": True, "rule": rule}
    session.command("/rule")
    list(session.say("hi"))
    assert server.asked[2]["guidance"] == {"trace": True}


def test_reset_forgets_the_conversation(session, server):
    list(session.say("hi"))
    session.command("/reset")
    list(session.say("again"))
    assert [message["content"] for message in server.asked[1]["messages"]] == ["again"]


def test_a_reply_that_is_stopped_is_remembered_as_far_as_it_came(session):
    pieces = session.say("hi")
    assert [next(pieces).text, next(pieces).text] == ["", "Hel"]
    pieces.close()
    assert session.messages[-1] == {"role": "assistant", "content": "Hel"}


@pytest.mark.parametrize("status", [200, 400])
def test_what_the_server_refuses_is_told_and_not_remembered(session, server, status):
    error = {"error": {"message": "the prompt is too long"}}
    server.status = status
    server.reply = json.dumps(error).encode() if status == 400 else b"data: " + json.dumps(error).encode()
    with pytest.raises(UserError, match="too long"):
        list(session.say("hi"))
    assert session.messages == []


@pytest.mark.parametrize(
    "line",
    [
        "/strength much",
        "/strength",
        "/heads kind=x",
        "/heads nope=1",
        "/frobnicate",
        "/control much",
        "/control max_kl=0",
        "/control horizon=8",
        "/rule smk",
        "/rule smc,particles",
        "/rule smc,particles=1",
        "/rule contrast,gamma=2",
    ],
)
def test_a_command_that_is_not_understood_changes_nothing(session, line):
    with pytest.raises(UserError):
        session.command(line)
    assert (session.strength, session.heads, session.controllers) == (None, None, {})
    assert session.rule == {}


def test_the_first_steering_head_with_a_value_tints(session):
    assert session.tinting_head == "kind"
    session.command("/heads brief=1")
    assert session.tinting_head is None
    session.command("/heads brief=1,kind=0.1")
    assert session.tinting_head == "kind"


def test_quit_leaves(session):
    with pytest.raises(Quit):
        session.command("/quit")


def test_better_is_greener_and_beyond_the_limit_nothing_changes():
    def channels(value: float) -> tuple[int, int, int]:
        color = tint(value).color
        assert color is not None
        return tuple(color.get_truecolor())  # type: ignore[return-value]

    redness = [channels(value)[0] for value in (-2, -1, 0, 1, 2)]
    assert redness == sorted(redness, reverse=True)
    assert channels(-9) == channels(-2) != channels(0) != channels(2) == channels(9)


def test_the_terminal_shows_legend_reply_and_summary(session, server, monkeypatch):
    lines = iter(["hi", "/strength much", "/strength 2", "", "/quit"])
    monkeypatch.setattr("builtins.input", lambda *_: next(lines))
    out = io.StringIO()
    converse(session, Console(file=out, force_terminal=True, color_system="truecolor", width=200))
    shown = out.getvalue()
    assert "value of `kind`" in shown
    red, green, blue = tint(-2.5).color.get_truecolor()  # type: ignore[union-attr]
    assert f"38;2;{red};{green};{blue}mHel" in shown
    assert "KL 3.1 nats" in shown
    assert "'much' is no number" in shown
    assert "strength 2" in shown
