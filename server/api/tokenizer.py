"""What the API needs of a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class Tokenizer(Protocol):
    """The part of transformers' PreTrainedTokenizerBase that the API uses."""

    chat_template: str | None
    added_tokens_decoder: dict[int, Any]

    def encode(self, text: str) -> list[int]: ...

    def convert_ids_to_tokens(self, ids: int) -> str | None: ...

    def apply_chat_template(
        self,
        conversation: Sequence[dict[str, str]],
        *,
        chat_template: str | None,
        add_generation_prompt: bool,
        tokenize: bool,
        return_dict: bool,
    ) -> list[int]: ...
