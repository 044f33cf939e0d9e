"""The bytes and the printable text behind a single token id."""

from __future__ import annotations

import re

from trimtab.server.api.tokenizer import Tokenizer

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


class TokenText:
    """Token ids as bytes and as text. Knows byte-level BPE and SentencePiece with byte fallback.

    Decoding one id with the tokenizer itself would drop leading spaces and turn parts of characters into
    replacement marks, so the vocabulary's pieces are read instead.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._is_byte_level = _decodes_byte_level(tokenizer)
        self._bytes: dict[int, bytes] = {
            token_id: str(added).encode() for token_id, added in tokenizer.added_tokens_decoder.items()
        }

    def bytes(self, token_id: int) -> bytes:
        """Empty for ids that pad the model's vocabulary beyond the tokenizer's."""
        if token_id not in self._bytes:
            piece = self._tokenizer.convert_ids_to_tokens(token_id) or ""
            self._bytes[token_id] = _byte_level_bytes(piece) if self._is_byte_level else _piece_bytes(piece)
        return self._bytes[token_id]

    def text(self, token_id: int) -> str:
        r"""The token's text; `bytes:\xe2\x80` where it is not whole characters, as OpenAI writes it."""
        raw = self.bytes(token_id)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _decodes_byte_level(tokenizer: Tokenizer) -> bool:
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    return decoder is not None and b'"ByteLevel"' in decoder.__getstate__()


def _printable_bytes() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others for U+0100 onwards in order."""
    kept = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    moved = [byte for byte in range(256) if byte not in kept]
    return {chr(byte): byte for byte in kept} | {chr(256 + i): byte for i, byte in enumerate(moved)}


_BYTE_OF = _printable_bytes()


def _byte_level_bytes(piece: str) -> bytes:
    return bytes(_BYTE_OF[character] for character in piece if character in _BYTE_OF)


def _piece_bytes(piece: str) -> bytes:
    if match := _BYTE_PIECE.fullmatch(piece):
        return bytes([int(match[1], 16)])
    return piece.replace("▁", " ").encode()
