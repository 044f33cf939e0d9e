"""Options of `trimtab chat`, checked."""

from __future__ import annotations

from dataclasses import dataclass

from trimtab.server.commands.model import ModelConfig


@dataclass(frozen=True)
class ChatConfig(ModelConfig):
    """Talks to a model and turns its knobs between replies: /strength 2, /heads kind=1,concise=0.5,
    /control max_kl=0.05, /rule smc,particles=8, /help.

    url: of a running `trimtab serve`, such as http://127.0.0.1:8000; without it the model is loaded here.
    """

    url: str | None = None
