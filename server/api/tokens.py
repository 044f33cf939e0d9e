"""Token texts: give the bytes and the printable text behind a single token id."""

from __future__ import annotations

from typing import Any, Protocol

from trimtab.server.engine.detokenizer import byte_level_bytes, byte_piece, decoder_names


class Tokenizer(Protocol):
    """The part of transformers' PreTrainedTokenizerBase that the API uses."""

    chat_template: Any
    added_tokens_decoder: dict[int, Any]
    special_tokens_map: Any

    def encode(self, text: str) -> list[int]: ...

    def convert_ids_to_tokens(self, ids: int) -> str | None: ...

    def __call__(self, text: str, *, add_special_tokens: bool) -> Any: ...


class TokenText:
    """Token ids as bytes and as text. Knows byte-level BPE and SentencePiece with byte fallback.

    Decoding one id with the tokenizer itself would drop leading spaces and turn parts of characters into
    replacement marks, so the vocabulary's pieces are read instead.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._is_byte_level = "ByteLevel" in decoder_names(getattr(tokenizer, "backend_tokenizer", None))
        self._bytes: dict[int, bytes] = {
            token_id: str(added).encode() for token_id, added in tokenizer.added_tokens_decoder.items()
        }

    def bytes(self, token_id: int) -> bytes:
        """Empty for ids that the tokenizer has no token for."""
        if token_id not in self._bytes:
            piece = self._tokenizer.convert_ids_to_tokens(token_id) or ""
            self._bytes[token_id] = byte_level_bytes(piece) if self._is_byte_level else _piece_bytes(piece)
        return self._bytes[token_id]

    def text(self, token_id: int) -> str:
        r"""The token's text; `bytes:\xe2\x80` where it is not whole characters, as OpenAI writes it."""
        raw = self.bytes(token_id)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _piece_bytes(piece: str) -> bytes:
    byte = byte_piece(piece)
    return piece.replace("▁", " ").encode() if byte is None else bytes([byte])
