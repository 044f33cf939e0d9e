"""Marks that a chat template writes around a reply: the header before it, the end after it, its tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trimtab.guidance.errors import ChatTemplateError
from trimtab.guidance.text.render import ASKED, ASSISTANT, REPLY, SYSTEM, USER, Turn, render_chat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WELL_KNOWN_ENDS = (
    *("</s>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<|eom_id|>", "<end_of_turn>"),
    *("<eos>", "<|end|>", "<|eot|>", "<|return|>", "<|END_OF_TURN_TOKEN|>", "<|end_of_turn|>"),
    *("<\uff5cend\u2581of\u2581sentence\uff5c>", "<|endofresponse|>"),
)
"""With which models of several families end a reply."""


@dataclass(frozen=True, slots=True)
class ChatMarks:
    """header: what stands right before an assistant's words, without the spaces around; "" for nothing.
    asked: what stands between a user's words and the reply. special: texts of the tokenizer's special tokens.
    """

    header: str
    asked: str
    special: tuple[str, ...]

    def holds_asked(self, text: str) -> bool:
        """Whether the text was rendered by the template already."""
        return bool(self.asked) and self.asked in text

    def found(self, text: str) -> str:
        """The first special token that the text holds; "" for none."""
        return next((token for token in self.special if token in text), "")


def chat_marks(tokenizer: PreTrainedTokenizerBase, *, is_chat: bool) -> ChatMarks:
    """Of a template that refuses to be tried, or of texts: special tokens only."""
    special = tuple(
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.special and len(token.content.strip()) > 1
    )
    header, asked = _around(tokenizer) if is_chat else ("", "")
    return ChatMarks(header, asked, special)


def _around(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    for turns in ([USER], [SYSTEM, USER]):
        try:
            asked = render_chat(tokenizer, turns, add_generation_prompt=False)
            begun = render_chat(tokenizer, turns, add_generation_prompt=True)
            whole = render_chat(tokenizer, [*turns, ASSISTANT], add_generation_prompt=False)
        except ChatTemplateError:
            continue
        closed = whole.partition(REPLY)[0]
        header = closed[len(asked) :] if closed.startswith(asked) else ""
        between = begun.rpartition(ASKED)[2] if begun != asked else closed.rpartition(ASKED)[2]
        return header.strip(), between.strip()
    return "", ""


def continuation(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], prompt: str, reply: str, end: str
) -> str:
    """The reply as the template writes it after the rendered prompt, up to the token `end`: with a space
    before it, say. The reply as it is where the template would alter it, or the prompt."""
    if not reply:
        return reply
    try:
        whole = render_chat(
            tokenizer, [*turns, {"role": "assistant", "content": reply}], add_generation_prompt=False
        )
    except ChatTemplateError:
        return reply
    if not whole.startswith(prompt):
        return reply
    after = whole[len(prompt) :]
    written = after.rpartition(end)[0] if end and end in after else after.rstrip()
    before, found, space = written.rpartition(reply)
    return before + reply + space if found and not space.strip() else reply


def without_header(reply: str, header: str) -> str:
    """Without a header that was rendered before it; the same where there is none."""
    begun = reply.lstrip()
    if not header or not begun.startswith(header):
        return reply
    return begun[len(header) :].lstrip()


def without_ends(reply: str, ends: Iterable[str]) -> tuple[str, str]:
    """The words, and the first of the ends that stood after them; the same and "" where there is none. What
    is white after an end goes with it."""
    ends, first = tuple(ends), ""
    while (end := ending(reply, ends)) is not None:
        reply, first = reply.rstrip()[: -len(end)], end
    return reply, first


def ending(text: str, ends: Iterable[str]) -> str | None:
    """The longest of the ends that the text ends with, white space apart."""
    closed = text.rstrip()
    return max((end for end in ends if end and closed.endswith(end)), key=len, default=None)
