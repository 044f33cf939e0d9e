"""A tokenizer as the engine reads it: what its tokens decode to, and which of them are special."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

from trimtab.server.engine.detokenizer import (
    NUM_CONTEXT_TOKENS,
    ByteDetokenizer,
    Decode,
    Detokenizer,
    WindowDetokenizer,
)

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

    def added_ids(self, texts: Iterable[str]) -> frozenset[int]:
        """Ids of the added tokens, special ones among them, that these texts exactly are."""
        return frozenset(self._added[text] for text in texts if text in self._added)

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
