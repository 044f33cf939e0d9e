"""The text of each drawn token, split as the engine split it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from trimtab.guidance.encoding import encode_prompt
from trimtab.guidance.errors import PolicyError
from trimtab.guidance.locate import must_be_local
from trimtab.server.engine.detokenizer import NUM_CONTEXT_TOKENS, Detokenizer
from trimtab.server.scoring.rollout import RolloutRow


@dataclass(frozen=True, slots=True)
class TokenTexts:
    """Together the texts of a row's tokens are its completion; an end token's is ""."""

    tokenizer: PreTrainedTokenizerBase

    def __call__(self, row: RolloutRow) -> list[str]:
        context = encode_prompt(self.tokenizer, row.prompt)[-NUM_CONTEXT_TOKENS:]
        backend = getattr(self.tokenizer, "backend_tokenizer", None) or self.tokenizer
        detokenizer = Detokenizer(lambda ids: backend.decode(ids, skip_special_tokens=True), context)
        spoken = row.token_ids if row.is_cut else row.token_ids[:-1]
        return [detokenizer.push(token) for token in spoken] + [""] * (not row.is_cut)


def load_tokenizer(model: str | Path) -> PreTrainedTokenizerBase:
    """Raises PolicyError with one line."""
    local = must_be_local(model)
    try:
        return AutoTokenizer.from_pretrained(model, local_files_only=local)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise PolicyError(f"the tokenizer of '{model}' cannot be loaded ({reason})") from error
