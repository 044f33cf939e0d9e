"""A chat request's messages as prompt tokens, by the model's chat template."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.guidance.errors import ChatTemplateError
from trimtab.guidance.text.message import template_role
from trimtab.guidance.text.render import encode_chat
from trimtab.server.api.protocol import Message
from trimtab.server.api.tokenizer import Tokenizer
from trimtab.server.engine.request import InvalidRequestError


def render_chat(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Token ids of the conversation up to where the assistant's reply begins.

    Raises InvalidRequestError when there is no template, or when it refuses the conversation or fails at it.
    """
    if not tokenizer.chat_template:
        raise InvalidRequestError(
            "messages: this model has no chat template; start the server with --chat-template FILE, or use"
            " /v1/completions",
            "messages",
        )
    turns = [{"role": template_role(m.role), "content": m.text} for m in messages]
    try:
        return encode_chat(tokenizer, turns)
    except ChatTemplateError as error:
        raise InvalidRequestError(f"messages: {error}", "messages") from error
