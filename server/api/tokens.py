"""Tokens of texts: encode prompts in threads of their own, and tell the text behind a token id."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from starlette.requests import ClientDisconnect, Request

from trimtab.server.engine.detokenizer import TokenBytes
from trimtab.server.engine.request import ContextLengthError

T = TypeVar("T")
NUM_THREADS = 2

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

    def get_vocab(self) -> dict[str, int]: ...

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


class Encoding:
    """What takes a tokenizer's time: few texts at once, in threads of their own, so that long ones keep
    neither the event loop nor other work waiting; none that cannot fit, and none for clients that have left.

    max_characters: of texts that may fit; more have more tokens than the context, whatever they say.
    """

    def __init__(self, tokenizer: Tokenizer, max_model_len: int) -> None:
        self._max_model_len = max_model_len
        self.max_characters = max_model_len * max(map(len, tokenizer.get_vocab()), default=1)
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="trimtab-encode")
        self._turns = asyncio.Semaphore(NUM_THREADS)

    def check_length(self, texts: Iterable[str], param: str) -> None:
        """Raises ContextLengthError for texts that together are a prompt which cannot fit."""
        num_characters = sum(map(len, texts))
        if num_characters > self.max_characters:
            raise ContextLengthError(
                f"this model's maximum context length is {self._max_model_len} tokens, which {num_characters}"
                " characters cannot fit; shorten the text",
                param,
            )

    async def run(self, http: Request, work: Callable[..., T], *args: Any) -> T:
        """What `work` returns, in its turn. Raises like it, and ClientDisconnect where nobody waits."""
        async with self._turns:
            if await http.is_disconnected():
                raise ClientDisconnect
            return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)
