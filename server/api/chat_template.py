"""Messages to prompt tokens, by the model's chat template."""

from __future__ import annotations

from collections.abc import Sequence

import jinja2

from trimtab.server.api.protocol import Message
from trimtab.server.api.tokenizer import Tokenizer
from trimtab.server.engine.request import InvalidRequestError

_TEMPLATE_ROLE = {"developer": "system"}


def render_chat(tokenizer: Tokenizer, messages: Sequence[Message], template: str | None) -> list[int]:
    """Token ids of the conversation up to where the assistant's reply begins.

    template: Jinja text that replaces the tokenizer's. Raises InvalidRequestError when there is none, or
    when it refuses the conversation.
    """
    if template is None and tokenizer.chat_template is None:
        raise InvalidRequestError(
            "messages: this model has no chat template; start the server with --chat-template FILE, or use"
            " /v1/completions",
            "messages",
        )
    rows = [{"role": _TEMPLATE_ROLE.get(m.role, m.role), "content": m.text} for m in messages]
    try:
        return tokenizer.apply_chat_template(
            rows, chat_template=template, add_generation_prompt=True, tokenize=True, return_dict=False
        )
    except jinja2.TemplateError as error:
        raise InvalidRequestError(f"messages: the chat template refuses them: {error}", "messages") from error
