"""Chat in the terminal: holds a conversation, its tokens tinted by value."""

from __future__ import annotations

import contextlib

import httpx
from rich.console import Console
from rich.style import Style
from rich.text import Text

from trimtab.guidance.errors import UserError
from trimtab.server.commands.chat.session import ChatSession, Quit

LIMIT = 2.0  # standard deviations, at which a tint is full
_BAD, _MIDDLE, _GOOD = (215, 60, 60), (150, 150, 150), (40, 170, 80)  # red, the terminal's grey, green


def run(url: str) -> None:
    """Chats with the server there. Raises UserError where there is none."""
    with httpx.Client(base_url=url.removesuffix("/").removesuffix("/v1")) as client:
        converse(ChatSession.connect(client), Console(highlight=False, soft_wrap=True))


def converse(session: ChatSession, console: Console) -> None:
    """Reads lines until the user quits or the input ends."""
    model = session.model
    console.print(
        f"{model['id']}, {model['default_head'] or 'no head'} at strength {model['default_strength']:g};"
        " /help lists the knobs"
    )
    if session.tinting_head is not None:
        console.print(legend(session.tinting_head))
    with contextlib.suppress(Quit, EOFError):
        while True:
            line = console.input("\n[bold]you[/bold] ").strip()
            try:
                _answer(session, console, line)
            except UserError as error:
                console.print(Text(str(error), "red"))
            except KeyboardInterrupt:
                console.print(Text(" stopped", "dim"))


def _answer(session: ChatSession, console: Console, line: str) -> None:
    if not line:
        return
    if line.startswith("/"):
        console.print(Text(session.command(line)))
        if line == "/help" and session.tinting_head is not None:
            console.print(legend(session.tinting_head))
        return
    for piece in session.say(line):
        style = "" if piece.value is None else tint(piece.value)
        console.print(Text(piece.text, style), end="")
    console.print()
    console.print(Text(_summary(session), "dim"))


def _summary(session: ChatSession) -> str:
    summary = session.summary
    rewards = [f"{head} {reward:+.1f}" for head, reward in summary["reward"].items()]
    steering = f"strength {summary['mean_strength']:.3g}, KL {summary['kl']:.1f} nats"
    return ", ".join([steering, f"{summary['flips']} flips", *rewards])


def tint(value: float) -> Style:
    """The colour of a value; beyond ±2 the colour of ±2."""
    share = max(-1.0, min(1.0, value / LIMIT))
    end = _GOOD if share > 0 else _BAD
    channels = (round(m + abs(share) * (e - m)) for m, e in zip(_MIDDLE, end, strict=True))
    return Style(color="#" + "".join(f"{channel:02x}" for channel in channels))


def legend(head: str) -> Text:
    """What the colours say."""
    text = Text("tint: ")
    for value in (-2, -1, 0, 1, 2):
        text.append(f"■ {value:+d}  " if value else "■ 0  ", tint(value))
    return text.append(f"value of `{head}`, in standard deviations of the model's own replies")
