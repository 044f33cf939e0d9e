"""Chat rendering: writes messages as the model's chat template does, and finds the token that ends a turn."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jinja2

from trimtab.guidance.errors import ChatTemplateError, PolicyError
from trimtab.guidance.text.sandbox import TemplateLimitError, render_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_WORDS = 1000
TEMPLATE_VARIABLES = ("messages", "tools", "documents", "add_generation_prompt")
"""What a template is given of the conversation itself, beside the special tokens by their names."""
Turn = Mapping[str, Any]  # role, content, and whatever else the template reads
Tool = Mapping[str, Any]  # {"type": "function", "function": {"name", "description", "parameters"}}


def render_chat(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Turn],
    *,
    add_generation_prompt: bool,
    tools: Sequence[Tool] = (),
    variables: Mapping[str, Any] | None = None,
) -> str:
    """The conversation as the template writes it; up to where the assistant's reply begins, if asked.

    tools: what the model may call; where there are any, a template named `tool_use` comes before `default`.
    variables: others that the template may read, by names that are not in TEMPLATE_VARIABLES.

    Raises:
        PolicyError: the tokenizer has no chat template.
        ChatTemplateError: the template refuses the conversation, or is at fault; in the template's words.
    """
    template = _template_of(tokenizer, "tool_use" if tools else "default")
    written = {
        **(variables or {}),
        **tokenizer.special_tokens_map,
        "messages": [dict(turn) for turn in turns],
        "tools": [dict(tool) for tool in tools] or None,
        "documents": None,
        "add_generation_prompt": add_generation_prompt,
    }
    try:
        text = render_template(template, written)
        text.encode()
    except jinja2.TemplateSyntaxError as error:
        where = f"line {error.lineno}: {_words(error)}"
        raise ChatTemplateError(f"the chat template is no Jinja: {where}") from error
    except jinja2.TemplateError as error:
        raise ChatTemplateError(f"the chat template refuses them: {_words(error)}") from error
    except Exception as error:  # a template is a program, and fails like one
        what = f"{type(error).__name__}: {_words(error)}"
        raise ChatTemplateError(f"the chat template fails: {what}") from error
    return text


def encode_chat(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Turn],
    *,
    add_generation_prompt: bool = True,
    continues: bool = False,
    tools: Sequence[Tool] = (),
    variables: Mapping[str, Any] | None = None,
) -> list[int]:
    """The tokens of what render_chat gives, and raises. continues: only up to the last message's last word,
    and ChatTemplateError where the template does not write it as it is."""
    begins = add_generation_prompt and not continues
    text = render_chat(tokenizer, turns, add_generation_prompt=begins, tools=tools, variables=variables)
    if continues:
        text = _up_to(text, turns[-1]["content"] or "")
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _up_to(text: str, words: str) -> str:
    for last in (words, words.strip()):
        at = text.rfind(last)
        if last and at >= 0:
            return text[: at + len(last)]
    what = "writes the last message otherwise than it is" if words else "has no words of a last message"
    raise ChatTemplateError(f"the chat template {what}, so that it cannot be continued")


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """The token that comes after an assistant's turn. is_closing: it belongs to the turn, and is not what the
    next one begins with."""

    token_id: int
    is_closing: bool


def turn_end(tokenizer: PreTrainedTokenizerBase) -> TurnEnd | None:
    """What the chat template writes after the assistant's words, where that is an added token; else None.

    Spaces before it do not count. Templates that close only turns which another follows are asked for one of
    those. Raises PolicyError or ChatTemplateError as render_chat, the latter where it refuses every probe.
    """
    refusal: ChatTemplateError | None = None
    was_rendered = False
    for turns in _PROBES:
        try:
            before, _, after = render_chat(tokenizer, turns, add_generation_prompt=False).partition(REPLY)
        except ChatTemplateError as error:
            if isinstance(error.__cause__, TemplateLimitError):
                raise
            refusal = refusal or error
            continue
        was_rendered = True
        token = _first_added_token(tokenizer, after)
        if token is not None:
            opens = turns[-1] is USER and _holds(tokenizer, before.rpartition(ASKED)[0], token)
            return TurnEnd(token, is_closing=not opens)
    if refusal is not None and not was_rendered:
        raise refusal
    return None


# What templates are tried with.
ASKED, REPLY = "TRIMTABASKED", "TRIMTABREPLY"
SYSTEM, USER, ASSISTANT = (
    {"role": role, "content": text} for role, text in (("system", "a"), ("user", ASKED), ("assistant", REPLY))
)
_CALL = {"id": "trimtab00", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
_CALLING: Turn = {"role": "assistant", "content": None, "tool_calls": [_CALL]}
_CALLED: Turn = {"role": "tool", "content": REPLY, "tool_call_id": "trimtab00", "name": "f"}
_PROBES: tuple[tuple[Turn, ...], ...] = (
    (USER, ASSISTANT),
    (SYSTEM, USER, ASSISTANT),
    (USER, ASSISTANT, USER),
    (SYSTEM, USER, ASSISTANT, USER),
)


def _first_added_token(tokenizer: PreTrainedTokenizerBase, text: str) -> int | None:
    ids = tokenizer(text.lstrip(), add_special_tokens=False)["input_ids"]
    token = str(tokenizer.added_tokens_decoder.get(ids[0], "")) if ids else ""
    return int(ids[0]) if token.strip() and text.lstrip().startswith(token.strip()) else None


def _holds(tokenizer: PreTrainedTokenizerBase, text: str, token_id: int) -> bool:
    return token_id in tokenizer(text, add_special_tokens=False)["input_ids"]


def unread(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn]) -> list[str]:
    """What of the conversation the template leaves out: keys beside role and content, and roles beside user
    and assistant; each where the rendered text is the same without it. Raises as render_chat."""
    extras = dict.fromkeys(key for turn in turns for key in turn if key not in ("role", "content"))
    roles = dict.fromkeys(turn["role"] for turn in turns if turn["role"] not in ("user", "assistant"))
    if not extras and not roles:
        return []
    whole = render_chat(tokenizer, turns, add_generation_prompt=True)
    others: dict[str, list[Turn]] = {
        key: [{k: v for k, v in turn.items() if k != key} for turn in turns] for key in extras
    }
    for role in roles:
        others[f"role {role}"] = [
            {**turn, "content": ASKED} if turn["role"] == role else turn for turn in turns
        ]
    return [what for what, changed in others.items() if _renders_as(tokenizer, changed, whole)]


def reads_tools(tokenizer: PreTrainedTokenizerBase, tools: Sequence[Tool]) -> bool:
    """Whether the template writes another text where there are tools; tried with a short conversation, and
    True where it refuses that. Raises PolicyError as render_chat."""
    try:
        with_tools = render_chat(tokenizer, (USER,), add_generation_prompt=True, tools=tools)
    except ChatTemplateError:
        return True
    return not _renders_as(tokenizer, (USER,), with_tools)


def unread_calls(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Which of `tool_calls` and `role tool` the template leaves out; tried as in reads_tools."""
    try:
        lost = unread(tokenizer, (USER, _CALLING, _CALLED))
    except ChatTemplateError:
        return []
    return [what for what in lost if what in ("tool_calls", "role tool")]


def _renders_as(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], text: str) -> bool:
    try:
        return render_chat(tokenizer, turns, add_generation_prompt=True) == text
    except ChatTemplateError:
        return False


def reads_key(tokenizer: PreTrainedTokenizerBase, key: str) -> bool:
    """Whether the template reads a key of a message anywhere. Raises as render_chat."""
    return re.search(rf"""(\.|['"]){re.escape(key)}\b""", _template_of(tokenizer)) is not None


def _template_of(tokenizer: PreTrainedTokenizerBase, name: str = "default") -> str:
    template = tokenizer.chat_template
    if isinstance(template, dict):
        if not {name, "default"} & template.keys():
            names = ", ".join(sorted(template))
            raise ChatTemplateError(f"of the chat templates {names} none is called default")
        template = template.get(name) or template["default"]
    if not template:
        raise PolicyError(
            "prompts are messages and the tokenizer has no chat template: give it one, or rows of strings "
            "(transcripts stay strings with --format trl)"
        )
    return str(template)


def _words(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= MAX_WORDS else text[:MAX_WORDS] + "…"
