"""From text to token ids: a prompt as the server renders it, then a reply, then the token that ends it."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from trimtab.guidance.chat_template import encode_chat
from trimtab.guidance.errors import DataError
from trimtab.guidance.message import Prompt
from trimtab.guidance.reply_ends import end_of_reply


@dataclass(frozen=True, slots=True)
class Sampled:
    """The tokens that a reply was sampled as. is_cut: its length ran out, and it has no end token."""

    token_ids: tuple[int, ...]
    is_cut: bool = False


@dataclass(frozen=True, slots=True)
class EncodedReply:
    """reply_ids: y_1 … y_T, of which y_T ends the reply.

    is_cut: the reply ran out of length, and y_T was appended: the reward is read after it, as the engine
    does, but nobody drew it, so it counts for no advantage or value.
    """

    prompt_ids: tuple[int, ...]
    reply_ids: tuple[int, ...]
    is_cut: bool = False

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.reply_ids)

    @property
    def num_drawn(self) -> int:
        """Tokens of the reply that were drawn: m_t = 1 on the first so many."""
        return len(self.reply_ids) - self.is_cut


class ReplyEncoder:
    """Encodes many replies with one tokenizer; the end token is looked up once per kind of prompt."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._end_ids: dict[bool, int] = {}

    def encode(self, prompt: Prompt, reply: str, sampled: Sampled | None = None) -> EncodedReply:
        """sampled: what the text was decoded from, where known: tokenized anew, it may be split otherwise.

        Raises PolicyError or DataError as encode_prompt and end_of_reply do.
        """
        is_chat = not isinstance(prompt, str)
        prompt_ids = encode_prompt(self.tokenizer, prompt)
        if is_chat not in self._end_ids:
            self._end_ids[is_chat] = end_of_reply(self.tokenizer, is_chat=is_chat)
        if sampled is not None and not sampled.is_cut:
            return EncodedReply(prompt_ids, sampled.token_ids)
        if sampled is not None:
            return EncodedReply(prompt_ids, (*sampled.token_ids, self._end_ids[is_chat]), is_cut=True)
        reply_ids = self.tokenizer(reply, add_special_tokens=False)["input_ids"]
        return EncodedReply(prompt_ids, (*reply_ids, self._end_ids[is_chat]))


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> tuple[int, ...]:
    """A string as it is; messages through the chat template, up to where the assistant's reply begins.

    Raises:
        PolicyError: messages, and the tokenizer has no chat template.
        DataError: the template refuses the messages, or fails at them; or no token comes before the reply
            to predict it.
    """
    if isinstance(prompt, str):
        ids = tokenizer(prompt)["input_ids"]
    else:
        ids = encode_chat(tokenizer, [{"role": m.role, "content": m.content} for m in prompt])
    if not ids:
        raise DataError("prompt is empty and the tokenizer puts no token before it")
    return tuple(ids)
