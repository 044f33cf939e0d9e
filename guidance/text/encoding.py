"""Encoding: takes a prompt as the server renders it, then a reply, then its end token, to token ids."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from trimtab.guidance.errors import DataError, PolicyError
from trimtab.guidance.text.ends import end_of_reply
from trimtab.guidance.text.marks import (
    WELL_KNOWN_ENDS,
    chat_marks,
    continuation,
    ending,
    without_ends,
    without_header,
)
from trimtab.guidance.text.message import Message, Prompt
from trimtab.guidance.text.notes import RowNotes
from trimtab.guidance.text.prompt_form import Rows, form_of
from trimtab.guidance.text.render import reads_key, render_chat, unread

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ANCHORS = ("\n", "x", "(", ".", "0")
_MESSAGES_AS_TEXT = re.compile(r"""\s*\[?\s*\{[^{}]*?['"](role|from)['"]\s*:""")
Ids = tuple[int, ...]


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


@dataclass(frozen=True, slots=True)
class _Asked:
    """A prompt as the policy reads it. turns: of a chat."""

    text: str
    ids: tuple[int, ...]
    turns: tuple[dict[str, Any], ...] = ()


class ReplyEncoder:
    """Encodes many prompts and replies with one tokenizer, as serving would read and draw them.

    rows: whether prompts that are strings are chats; see prompt_form. end_ids: tokens that end a reply beside
    those that the tokenizer names. extra_keys: what a message's key does which the template does not read.
    notes: oddities of what was encoded, for the caller to tell.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        rows: Rows = "auto",
        *,
        end_ids: Iterable[int] = (),
        extra_keys: Literal["refuse", "ignore"] = "refuse",
    ) -> None:
        """Raises PolicyError where rows are to be chats, and there is no template."""
        self.tokenizer = tokenizer
        self.form = form_of(tokenizer, rows)
        self.notes = RowNotes()
        self._extra_keys = extra_keys
        self._marks = chat_marks(tokenizer, is_chat=self.form == "chat")
        self._known_ends = frozenset(end_ids)
        self._end_ids: dict[bool, int] = {}
        self._ends: dict[str, int] | None = None
        self._last: tuple[Prompt, _Asked] | None = None

    def encode(self, prompt: Prompt, reply: str, sampled: Sampled | None = None) -> EncodedReply:
        """sampled: what the text was decoded from, where known: tokenized anew, it may be split otherwise.

        Raises PolicyError or DataError as encode_prompt and end_of_reply do; DataError for a reply that is
        nothing but its end.
        """
        asked = self._ask(prompt)
        end = self._end_of(is_chat=bool(asked.turns))
        if sampled is not None:
            return self._sampled(asked, sampled, end, reply)
        words, given_end = self._words(reply, asked)
        if given_end and not asked.turns:
            end = self.ends[given_end]  # of a text that was rendered beforehand
        if asked.turns:
            end_text = self.tokenizer.decode([end], skip_special_tokens=False)
            assert isinstance(end_text, str)
            words = continuation(self.tokenizer, asked.turns, asked.text, words, end_text)
        ids = following_tokens(self.tokenizer, asked.text, asked.ids, words, is_chat=bool(asked.turns))
        return EncodedReply(asked.ids, (*ids, end))

    def prompt_ids(self, prompt: Prompt) -> tuple[int, ...]:
        """See encode_prompt."""
        return self._ask(prompt).ids

    def end_id(self, prompt: Prompt) -> int | None:
        """What is read behind a reply to the prompt that is cut; None where the tokenizer knows no end.

        Raises DataError as encode_prompt.
        """
        is_chat = bool(self._ask(prompt).turns)
        try:
            return self._end_of(is_chat=is_chat)
        except PolicyError:
            return None

    @property
    def ends(self) -> dict[str, int]:
        """Every token that ends a reply, by its text."""
        if self._ends is None:
            ids = {*self._known_ends, self._end_of(is_chat=bool(self.tokenizer.chat_template))}
            if self.tokenizer.eos_token_id is not None:
                ids.add(int(self.tokenizer.eos_token_id))
            texts = {token.content: i for i, token in self.tokenizer.added_tokens_decoder.items()}
            known = {text: texts[text] for text in WELL_KNOWN_ENDS if text in self._marks.special}
            self._ends = {**known, **{text: i for text, i in texts.items() if i in ids}}
        return self._ends

    def _end_of(self, *, is_chat: bool) -> int:
        if is_chat not in self._end_ids:
            self._end_ids[is_chat] = end_of_reply(self.tokenizer, is_chat=is_chat)
        return self._end_ids[is_chat]

    def _ask(self, prompt: Prompt) -> _Asked:
        """The replies of a row share the last prompt."""
        if self._last is None or self._last[0] != prompt:
            asked = self._read_text(prompt) if isinstance(prompt, str) else self._read_chat(prompt)
            if not asked.ids:
                raise DataError("prompt is empty and the tokenizer puts no token before it")
            self._last = prompt, asked
        return self._last[1]

    def _read_text(self, prompt: str) -> _Asked:
        if _MESSAGES_AS_TEXT.match(prompt):
            self.notes.add("json", prompt)
        if self.form == "chat":
            self.notes.add("chat", prompt)
            if self._marks.holds_asked(prompt) or self._marks.found(prompt):
                self.notes.add("rendered", prompt)
            return self._render((Message("user", prompt),))
        ids = tuple(self.tokenizer(prompt)["input_ids"])
        if len(ids) > 1 and ids[0] == ids[1] == self.tokenizer.bos_token_id:
            self.notes.add("two beginnings", prompt)
        return _Asked(prompt, ids)

    def _read_chat(self, prompt: tuple[Message, ...]) -> _Asked:
        if self.form == "text" and self.tokenizer.chat_template:
            raise DataError("prompt is a list of messages, and rows are texts: leave --rows text out")
        asked = self._render(prompt)
        for message in prompt:
            if self._marks.found(message.text):
                self.notes.add("special", message.text)
        if any(turn["role"] == "system" for turn in asked.turns[1:]):
            self.notes.add("system", next(m.text for m in prompt[1:] if m.turn()["role"] == "system"))
        self._check_read(asked)
        return asked

    def _render(self, prompt: tuple[Message, ...]) -> _Asked:
        turns = tuple(message.turn() for message in prompt)
        text = render_chat(self.tokenizer, turns, add_generation_prompt=True)
        return _Asked(text, tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"]), turns)

    def _check_read(self, asked: _Asked) -> None:
        """Raises DataError for what the template leaves out of the conversation."""
        for what in unread(self.tokenizer, asked.turns):
            known = not what.startswith("role ") and reads_key(self.tokenizer, what)
            if self._extra_keys == "refuse" and not known:
                raise DataError(
                    f"prompt: the chat template leaves out {what} of a message: take it out, skip bad rows, "
                    "or ignore extra columns"
                )
            self.notes.add(f"{{n}} prompts have {what} in a message that the template leaves out", asked.text)

    def _sampled(self, asked: _Asked, sampled: Sampled, end: int, reply: str) -> EncodedReply:
        """The end that was drawn stays; without one, it is appended as the engine does."""
        ids, ends = sampled.token_ids, {*self.ends.values(), *self._known_ends}
        has_end = ids[-1] in ends
        if has_end and len(ids) > 1 and ids[-2] in ends:
            raise DataError("token_ids end with more than one end token: keep the first")
        if not has_end and not sampled.is_cut:
            self.notes.add("no end", reply)
        return EncodedReply(asked.ids, ids if has_end else (*ids, end), is_cut=not has_end)

    def _words(self, reply: str, asked: _Asked) -> tuple[str, str]:
        """What is said, and the end that stood after it."""
        words = without_header(reply, self._marks.header) if asked.turns else reply
        if words != reply:
            self.notes.add("header", reply)
        words, end = without_ends(words, self.ends)
        if end:
            self.notes.add("end", reply)
        foreign = ending(words, set(WELL_KNOWN_ENDS) - set(self.ends))
        if foreign and not (foreign == "</s>" and "<s>" in words):
            self.notes.add("foreign end", reply)
        if any(text in words for text in self.ends):
            self.notes.add("end inside", words)
        elif self._marks.found(words):
            self.notes.add("special", words)
        if _MESSAGES_AS_TEXT.match(words):
            self.notes.add("json reply", words)
        if reply and not words:
            raise DataError(f"reply is nothing but its end, {reply[:40]!r}")
        return words, end


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, rows: Rows = "auto") -> tuple[int, ...]:
    """Messages through the chat template, up to where the assistant's reply begins; a string as one message
    of the user, or as it is: see prompt_form.

    Raises:
        PolicyError: messages, and the tokenizer has no chat template.
        DataError: the template refuses the messages, or fails at them, or leaves out what they say; or no
            token comes before the reply to predict it.
    """
    return ReplyEncoder(tokenizer, rows).prompt_ids(prompt)


def following_tokens(
    tokenizer: PreTrainedTokenizerBase, before: str, before_ids: Sequence[int], text: str, *, is_chat: bool
) -> Ids:
    """Tokens y with decode(before_ids + y) = decode(before_ids) + text.

    A prompt is tokenized alone where it is served, so its tokens are fixed, and the reply's are those that
    the model would draw after them: what the whole has after the prompt where the whole begins with the
    prompt's tokens; else, where a token of the whole lies across the boundary, the text as it is split after
    something else. SentencePiece puts a space before a text that stands alone, which nobody would draw.

    is_chat: `before` is a rendered chat, to which the tokenizer adds no special tokens.
    """
    fixed = tuple(before_ids)
    if not text:
        return ()
    whole: Ids = tuple(tokenizer(before + text, add_special_tokens=not is_chat)["input_ids"])
    wanted, tried = decode(tokenizer, fixed) + text, dict[Ids, str]()
    for ids in _ways_to_split(tokenizer, fixed, whole, text):
        tried.setdefault(ids, decode(tokenizer, (*fixed, *ids)))
        if tried[ids] == wanted:
            return ids
    # A tokenizer may not give back what it was given: it strips, or normalises.
    same = [ids for ids, read in tried.items() if read == decode(tokenizer, whole)]
    return [*same, *tried][0]


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Everything that the tokens say."""
    text = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def _ways_to_split(tokenizer: PreTrainedTokenizerBase, fixed: Ids, whole: Ids, text: str) -> Iterator[Ids]:
    """The likeliest first."""
    if whole[: len(fixed)] == fixed:
        yield whole[len(fixed) :]
    for anchor in _ANCHORS:
        head: Ids = tuple(tokenizer(anchor, add_special_tokens=False)["input_ids"])
        both: Ids = tuple(tokenizer(anchor + text, add_special_tokens=False)["input_ids"])
        if both[: len(head)] == head:
            yield both[len(head) :]
    yield tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
