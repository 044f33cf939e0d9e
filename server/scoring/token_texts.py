"""Token texts of a reply: split it as the engine split it."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from trimtab.guidance.data.rollouts import RolloutRow
from trimtab.guidance.errors import PolicyError, first_line
from trimtab.guidance.locate import must_be_local
from trimtab.guidance.model_names import find_model
from trimtab.guidance.text.encoding import ReplyEncoder
from trimtab.guidance.text.prompt_form import Rows
from trimtab.server.engine.detokenizer import TextDecoder


class TokenTexts:
    """Together the texts of a row's tokens are its completion; an end token's is ""."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rows: Rows = "auto") -> None:
        """rows: as what prompts that are strings were sampled to."""
        self._prompts = ReplyEncoder(tokenizer, rows, extra_keys="ignore")
        self._text = TextDecoder(tokenizer)

    def __call__(self, row: RolloutRow) -> list[str]:
        detokenizer = self._text.detokenizer(self._prompts.prompt_ids(row.prompt))
        spoken = row.token_ids if row.is_cut else row.token_ids[:-1]
        texts = [detokenizer.push(token) for token in spoken]
        if texts:
            texts[-1] += detokenizer.flush()
        return texts + [""] * (not row.is_cut)


def load_tokenizer(model: str | Path) -> PreTrainedTokenizerBase:
    """Raises PolicyError with one line."""
    model = find_model(model)
    local = must_be_local(model)
    try:
        return AutoTokenizer.from_pretrained(model, local_files_only=local, trust_remote_code=False)
    except Exception as error:  # whatever a corrupt file makes the loader raise
        reason = first_line(error)
        raise PolicyError(f"the tokenizer of '{model}' cannot be loaded ({reason})") from error
