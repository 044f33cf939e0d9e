"""Detokenizer: reads token ids as text, one token at a time, never half a character."""

from __future__ import annotations

import codecs
import copy
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol, Self

REPLACEMENT = "\ufffd"
NUM_CONTEXT_TOKENS = 5
SPACE = 0x20
MAX_HELD = 3  # marks at the end of a text that more bytes may still make one character
KEPT_WINDOW = 8  # tokens: as many as MAX_HELD marks can be made of, and some to their left
KEPT_PIECES = 1  # token, where each is whole characters
Decode = Callable[[Sequence[int]], str]

_new_utf8_decoder = codecs.getincrementaldecoder("utf-8")


class Detokenizer(Protocol):
    """Reads a reply as it grows: what `push` and a last `flush` return joins to the text of all its tokens.

    offset: where in that text the token begins that was pushed last, in characters.
    """

    offset: int

    @property
    def pending(self) -> str:
        """Whole characters that are held back because the next token may still undo them."""
        ...

    def push(self, token_id: int) -> str:
        """The text that is certain since this token."""
        ...

    def flush(self) -> str:
        """What was held back, once no token can come any more."""
        ...

    def fork(self) -> Self:
        """Another that has read the same."""
        ...


class ByteDetokenizer:
    """For vocabularies whose tokens are bytes of UTF-8: holds back a character's first bytes and no more.

    pieces: the bytes of each token; none where decoding leaves it out.
    """

    pending = ""

    def __init__(self, pieces: Mapping[int, bytes]) -> None:
        self._pieces, self._utf8 = pieces, _new_utf8_decoder("replace")
        self.offset = self._length = 0

    def push(self, token_id: int) -> str:
        piece = self._pieces[token_id]
        begun: bytes = self._utf8.getstate()[0]
        ends_begun = begun and piece and not _goes_on(begun, piece)
        # Mostly one mark; but of a surrogate's first bytes, which codecs hold back too, one each.
        self.offset = self._length + (len(begun.decode("utf-8", "replace")) if ends_begun else 0)
        text = self._utf8.decode(piece)
        self._length += len(text)
        return text

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)

    def fork(self) -> Self:
        other = copy.copy(self)
        other._utf8 = copy.copy(self._utf8)
        return other


def _goes_on(begun: bytes, piece: bytes) -> bool:
    """Whether a piece's first byte continues the character that was begun."""
    try:
        _new_utf8_decoder("strict").decode(begun + piece[:1])
    except UnicodeDecodeError:
        return False
    return True


class WindowDetokenizer:
    """For any other vocabulary: text is what decoding a window of recent tokens gives beyond what was read.

    decode: ids to text; where it leaves out tokens, so does the window. context: the end of the prompt, by
    which tokenizers whose pieces depend on what stands before them (leading spaces) come out right.
    byte_of: tokens that are one byte each, as SentencePiece falls back to. A run of them decodes as a whole:
    to its characters, or, with any byte amiss, to as many marks; so it is held back until it ends. All other
    tokens are then whole characters; None where that is not known.
    skipped: tokens known to decode to nothing.
    """

    def __init__(
        self,
        decode: Decode,
        context: Sequence[int] = (),
        *,
        byte_of: Mapping[int, int] | None = None,
        skipped: Collection[int] = (),
    ) -> None:
        self._decode, self._byte_of, self._skipped = decode, byte_of or {}, skipped
        self._max_held, self._kept = (MAX_HELD, KEPT_WINDOW) if byte_of is None else (0, KEPT_PIECES)
        self._window, self._run = list(context), _ByteRun()
        self._known = decode(self._window) if self._window else ""
        self._held = ""
        self._length = self.offset = 0

    @property
    def pending(self) -> str:
        return self._run.text[self._run.num_lost :] if self._run.is_whole else ""

    def push(self, token_id: int) -> str:
        if token_id in self._skipped:
            self.offset = self._length + self._run.num_characters
            return ""
        byte = self._byte_of.get(token_id)
        if byte is None:
            return self._read(token_id)
        if not self._run.ids and byte == SPACE:
            self._run.num_lost = 1 - (len(self._decode([*self._window, token_id])) - len(self._known))
        self.offset = self._length + self._run.num_begun
        self._run.push(token_id, byte)
        return ""

    def flush(self) -> str:
        held, self._held = self._held, ""
        if self._run.ids:
            self._window += self._run.ids
            held = self._decode(self._window)[len(self._known) :]
            self._run = _ByteRun()
        return held

    def fork(self) -> Self:
        other = copy.copy(self)
        other._window, other._run = list(self._window), self._run.fork()
        return other

    def _read(self, token_id: int) -> str:
        self.offset = self._length
        if self._run.ids:
            self.offset += self._run.num_characters
            self._window += self._run.ids
            self._run = _ByteRun()
        self._window.append(token_id)
        text = self._decode(self._window)
        new = self._certain(text)[len(self._known) :] if text.startswith(self._known) else ""
        self._known += new
        self._held = text[len(self._known) :]
        self._length += len(new)
        if len(self._window) > 2 * self._kept:
            del self._window[: -self._kept]
            self._known = self._certain(self._decode(self._window))
        return new

    def _certain(self, text: str) -> str:
        """What no later token undoes. In a window that begins within a character, its bytes are marks."""
        num_marks = len(text) - len(text.rstrip(REPLACEMENT))
        return text[: len(text) - min(num_marks, self._max_held)]


class _ByteRun:
    """Tokens of a byte each that follow one another. text: the whole characters that they begin with.

    is_whole: they are characters and nothing else, so far. num_lost: 1 where the decoder drops the space that
    they begin with, as it does before the first word of a text.
    """

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.text = ""
        self.num_lost = 0
        self.is_whole = self._is_valid = True
        self._utf8 = _new_utf8_decoder("strict")

    def fork(self) -> _ByteRun:
        other = copy.copy(self)
        other.ids, other._utf8 = list(self.ids), copy.copy(self._utf8)
        return other

    @property
    def num_characters(self) -> int:
        """Of what the run decodes to if it ends here."""
        return len(self.text) - self.num_lost if self.is_whole else len(self.ids)

    @property
    def num_begun(self) -> int:
        """Of what it decodes to before the character that its next byte may belong to."""
        return max(0, len(self.text) - self.num_lost) if self._is_valid else len(self.ids)

    def push(self, token_id: int, byte: int) -> None:
        self.ids.append(token_id)
        if not self._is_valid:
            return
        try:
            self.text += self._utf8.decode(bytes([byte]))
        except UnicodeDecodeError:
            self._is_valid = self.is_whole = False
        else:
            self.is_whole = not self._utf8.getstate()[0]


class TextDecoder:
    """How a tokenizer decodes, special tokens left out."""

    def __init__(self, tokenizer: Any) -> None:
        """tokenizer: transformers' PreTrainedTokenizerBase."""
        self._tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._backend = backend if hasattr(backend, "decoder") else None
        added = tokenizer.added_tokens_decoder.items()
        self._added = {str(token): int(token_id) for token_id, token in added}
        self._special = frozenset(int(token_id) for token_id, token in added if token.special)
        self._decoders = decoder_names(self._backend)

    def detokenizer(self, prompt: Sequence[int]) -> Detokenizer:
        """Of one reply to a prompt."""
        if self._decoders == ["ByteLevel"]:
            return ByteDetokenizer(self._pieces)
        end = len(prompt)
        while end and prompt[end - 1] in (self._byte_of or ()):
            end -= 1  # bytes of the prompt's decode together with those that follow them
        context = prompt[max(0, end - NUM_CONTEXT_TOKENS) : end]
        return WindowDetokenizer(self.decode, context, byte_of=self._byte_of, skipped=self._special)

    @property
    def decode(self) -> Decode:
        """Token ids to text."""
        reader = self._backend or self._tokenizer
        return lambda ids: reader.decode(ids, skip_special_tokens=True)

    def added_ids(self, texts: Iterable[str]) -> dict[int, str]:
        """The added tokens, special ones among them, that these texts exactly are: id → text."""
        return {self._added[text]: text for text in texts if text in self._added}

    @cached_property
    def _pieces(self) -> _Pieces:
        return _Pieces(self._backend, self._special)

    @cached_property
    def _byte_of(self) -> dict[int, int] | None:
        if self._backend is None or "ByteFallback" not in self._decoders or "ByteLevel" in self._decoders:
            return None
        vocabulary = self._backend.get_vocab(with_added_tokens=False)
        found = ((token_id, byte_piece(piece)) for piece, token_id in vocabulary.items())
        return {token_id: byte for token_id, byte in found if byte is not None}


class _Pieces(dict[int, bytes]):
    """The bytes of byte-level tokens, filled in as they are asked for."""

    def __init__(self, backend: Any, special: frozenset[int]) -> None:
        super().__init__()
        self._backend, self._special = backend, special

    def __missing__(self, token_id: int) -> bytes:
        piece = None if token_id in self._special else self._backend.id_to_token(token_id)
        self[token_id] = byte_level_bytes(piece or "")
        return self[token_id]


def decoder_names(backend: Any) -> list[str]:
    """The names of a fast tokenizer's decoders, in order."""
    decoder = getattr(backend, "decoder", None)
    if decoder is None:
        return []
    state = json.loads(decoder.__getstate__())
    return [each["type"] for each in state.get("decoders", [state])]


_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _printable_bytes() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others for U+0100 onwards in order."""
    kept = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    moved = [byte for byte in range(256) if byte not in kept]
    return {chr(byte): byte for byte in kept} | {chr(256 + i): byte for i, byte in enumerate(moved)}


BYTE_OF = _printable_bytes()


def byte_level_bytes(piece: str) -> bytes:
    """The bytes of a byte-level piece; one that holds anything else stands for itself."""
    found = [BYTE_OF.get(character, -1) for character in piece]
    return piece.encode() if -1 in found else bytes(found)


def byte_piece(piece: str) -> int | None:
    """The byte that SentencePiece writes as <0x0A>; None for any other piece."""
    match = _BYTE_PIECE.fullmatch(piece)
    return None if match is None else int(match[1], 16)


class TokenBytes(dict[int, bytes]):
    """The bytes that each token writes, filled in as they are asked for; none for ids without a token.

    Knows byte-level BPE and SentencePiece. Decoding one id with the tokenizer itself would drop leading
    spaces and turn parts of characters into marks, so the vocabulary's pieces are read instead.
    """

    def __init__(self, tokenizer: Any) -> None:
        """tokenizer: transformers' PreTrainedTokenizerBase."""
        added = tokenizer.added_tokens_decoder.items()
        super().__init__({token_id: str(token).encode() for token_id, token in added})
        self._tokenizer = tokenizer
        self._is_byte_level = "ByteLevel" in decoder_names(getattr(tokenizer, "backend_tokenizer", None))

    def __missing__(self, token_id: int) -> bytes:
        piece = self._tokenizer.convert_ids_to_tokens(token_id) or ""
        self[token_id] = byte_level_bytes(piece) if self._is_byte_level else _sentence_bytes(piece)
        return self[token_id]


def _sentence_bytes(piece: str) -> bytes:
    byte = byte_piece(piece)
    return piece.replace("▁", " ").encode() if byte is None else bytes([byte])
