"""Session of a chat: keeps its state, obeys its commands, and streams a reply."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from trimtab.guidance.controllers import parse_controllers, read_controllers, spellings
from trimtab.guidance.errors import ControllerError, RuleError, UserError
from trimtab.guidance.rules import RULES, Tilt, parse_rule, read_rule
from trimtab.server.flags import parse_number, parse_weights

Json = dict[str, Any]
HELP = f"""\
/strength 2               how hard the heads steer: 0 is the plain model, negative is away from
/heads kind=1,concise=0.5 which heads steer, with weights; /heads alone goes back to the server's default
/control max_kl=0.05      what lessens the strength from token to token: one or more of
                          {",".join(spellings())}
                          /control alone takes it off
/rule smc,particles=8     how scores become the next token: {", ".join(RULES)}, with options of each, such as
                          contrast,gamma=2,negative_prompt=Be rude. (the prompt goes to the end of the line);
                          /rule alone goes back to tilt
/reset                    forget the conversation
/help                     this list
/quit                     leave (or Ctrl-D); Ctrl-C stops a reply"""


class Quit(Exception):  # noqa: N818 (a request of the user's, not an error)
    """The user wants to leave."""


@dataclass(frozen=True, slots=True)
class Piece:
    """New text of a reply. value: of the tinting head, in standard units, or None where it is unknown."""

    text: str
    value: float | None


@dataclass(slots=True)
class ChatSession:
    """One conversation with a server. model: as GET /v1/models describes it."""

    client: httpx.Client
    model: Json
    strength: float | None = None
    heads: dict[str, float] | None = None
    controllers: Json = field(default_factory=dict)
    rule: Json = field(default_factory=dict)
    messages: list[Json] = field(default_factory=list)
    summary: Json = field(default_factory=dict)

    @classmethod
    def connect(cls, client: httpx.Client) -> ChatSession:
        """Raises UserError when there is no server, it is not ready, or it is not ours."""
        try:
            response = client.get("/v1/models")
        except httpx.TransportError as error:
            raise UserError(f"no server at {client.base_url} ({error}); start `trimtab serve`") from error
        _raise_if_refused(response)
        model = response.json()["data"][0]
        if "heads" not in model:
            raise UserError(f"{client.base_url} is no Trimtab server; name one with --url")
        return cls(client, model)

    @property
    def guidance(self) -> Json:
        """The next request's guidance: the knobs that were turned."""
        given = {"strength": self.strength, "heads": self.heads}
        turned = {name: value for name, value in given.items() if value is not None}
        return {"trace": True} | turned | self.controllers | ({"rule": self.rule} if self.rule else {})

    @property
    def tinting_head(self) -> str | None:
        """The first of the steering heads that has a value."""
        with_value = {head["name"] for head in self.model["heads"] if head["has_value"]}
        named = [self.model["default_head"]] if self.heads is None else list(self.heads)
        return next((name for name in named if name in with_value), None)

    def command(self, line: str) -> str:
        """Carries out a line that begins with a slash; what to print. Raises Quit, or UserError."""
        name, _, argument = line[1:].partition(" ")
        match name:
            case "strength":
                self.strength = parse_number(argument)
                return f"strength {self.strength:g}"
            case "heads":
                self.heads = self._loaded(parse_weights(argument)) or None
                weights = ", ".join(f"{head}={weight:g}" for head, weight in (self.heads or {}).items())
                return f"heads {weights or 'by default'}"
            case "control":
                self.controllers = _controllers(argument)
                return f"control {argument.strip() or 'off'}"
            case "rule":
                self.rule = _rule(argument)
                return f"rule {argument.strip() or Tilt.kind}"
            case "reset":
                self.messages.clear()
                return "forgotten"
            case "help":
                return HELP
            case "quit":
                raise Quit
        raise UserError(f"no command /{name}; /help lists them")

    def _loaded(self, weights: dict[str, float]) -> dict[str, float]:
        names = [head["name"] for head in self.model["heads"]]
        for name in weights:
            if name not in names:
                raise UserError(f"no head {name!r}; loaded heads: {', '.join(names) or 'none'}")
        return weights

    def say(self, text: str) -> Iterator[Piece]:
        """Streams the reply to a message. Both are remembered when the reply ends or the iteration is left.

        Raises UserError for what the server refuses, and then remembers neither.
        """
        asked = [*self.messages, {"role": "user", "content": text}]
        reply = ""
        try:
            for choice in self._choices({"messages": asked, "stream": True, "guidance": self.guidance}):
                piece = choice["delta"].get("content", "")
                reply += piece
                self.summary = choice["guidance"] if choice["finish_reason"] else self.summary
                yield Piece(piece, self._value(choice))
        except UserError:
            raise
        except BaseException:
            self._remember(asked, reply)
            raise
        self._remember(asked, reply)

    def _remember(self, asked: list[Json], reply: str) -> None:
        self.messages = [*asked, {"role": "assistant", "content": reply}]

    def _value(self, choice: Json) -> float | None:
        trace = choice.get("guidance", {}).get("trace", [])
        value: float | None = trace[-1]["value"].get(self.tinting_head) if trace else None
        return value

    def _choices(self, body: Json) -> Iterator[Json]:
        try:
            with self.client.stream("POST", "/v1/chat/completions", json=body, timeout=None) as response:
                _raise_if_refused(response)
                for line in response.iter_lines():
                    data = line.removeprefix("data: ")
                    if data and data != "[DONE]":
                        yield _unless_error(json.loads(data))["choices"][0]
        except httpx.TransportError as error:
            raise UserError(f"the server at {self.client.base_url} is gone: {error}") from error


def _controllers(text: str) -> Json:
    """As a request spells them. Raises UserError for what no server would take."""
    try:
        given = parse_controllers(text)
        read_controllers(given)
    except ControllerError as error:
        raise UserError(str(error)) from error
    return given


def _rule(text: str) -> Json:
    """As a request spells it; empty for none. Raises UserError for what no server would take."""
    if not text.strip():
        return {}
    try:
        kind, options = parse_rule(text)
        read_rule(kind, options)
    except RuleError as error:
        raise UserError(str(error)) from error
    return {"kind": kind, **options}


def _raise_if_refused(response: httpx.Response) -> None:
    if response.is_error:
        response.read()
        is_json = response.headers.get("content-type", "").startswith("application/json")
        _unless_error(response.json() if is_json else {})
        raise UserError(f"{response.url} answers {response.status_code}; is it a Trimtab server?")


def _unless_error(body: Json) -> Json:
    if "error" in body:
        raise UserError(body["error"]["message"])
    return body
