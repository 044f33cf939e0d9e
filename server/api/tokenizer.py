"""What the API needs of a tokenizer."""

from __future__ import annotations

from typing import Any, Protocol


class Tokenizer(Protocol):
    """The part of transformers' PreTrainedTokenizerBase that the API uses."""

    chat_template: Any
    added_tokens_decoder: dict[int, Any]
    special_tokens_map: Any

    def encode(self, text: str) -> list[int]: ...

    def convert_ids_to_tokens(self, ids: int) -> str | None: ...

    def __call__(self, text: str, *, add_special_tokens: bool) -> Any: ...
