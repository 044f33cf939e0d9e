"""Token texts: give the bytes and the printable text behind a single token id."""

from __future__ import annotations

from typing import Any, Protocol

from trimtab.server.engine.detokenizer import TokenBytes

_LEAST_LOGPROB = -9999.0  # OpenAI's stand-in for minus infinity


def jsonable_logprob(logprob: float) -> float:
    """nats, with minus infinity replaced by what JSON can write."""
    return max(logprob, _LEAST_LOGPROB)


class Tokenizer(Protocol):
    """The part of transformers' PreTrainedTokenizerBase that the API uses."""

    chat_template: Any
    added_tokens_decoder: dict[int, Any]
    special_tokens_map: Any

    def encode(self, text: str) -> list[int]: ...

    def decode(self, token_ids: list[int]) -> str: ...

    def convert_ids_to_tokens(self, ids: int) -> str | None: ...

    def __call__(self, text: str, *, add_special_tokens: bool) -> Any: ...


class TokenText:
    """Token ids as bytes and as text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._bytes = TokenBytes(tokenizer)

    def bytes(self, token_id: int) -> bytes:
        """Empty for ids that the tokenizer has no token for."""
        return self._bytes[token_id]

    def text(self, token_id: int) -> str:
        r"""The token's text; `bytes:\xe2\x80` where it is not whole characters, as OpenAI writes it."""
        raw = self.bytes(token_id)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
