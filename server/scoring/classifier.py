"""Scores from a reward model: any transformers `…ForSequenceClassification`, read with its own tokenizer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from trimtab.guidance.data.rollouts import RolloutRow, plain_prompt
from trimtab.guidance.errors import DataError, PolicyError, UserError, first_line
from trimtab.guidance.heads.fingerprint import tokenizer_hash
from trimtab.guidance.locate import must_be_local
from trimtab.guidance.publish.classifier import BIAS, load_classifier
from trimtab.guidance.text.encoding import ReplyEncoder, Sampled
from trimtab.guidance.text.render import encode_chat
from trimtab.server.scoring.scorer import Score
from trimtab.server.scoring.token_texts import load_tokenizer

BATCH_TOKENS = 8192
BATCH_ROWS = 32
_NO_LIMIT = 10**6  # tokenizers write 1e30 where nobody has said


class ClassifierScorer:
    """The logit of a model with one label, or the log-probability of one of several.

    Messages go through the model's own chat template, reply and all; a string is read with its reply behind
    it. What `trimtab heads export-reward` wrote reads the tokens that the reward part reads, and its bias is
    added: the scores are the reward part's own.
    """

    rows_at_once = 256

    def __init__(self, path: str | Path, label: str, *, policy: str | Path, device: str = "auto") -> None:
        """policy: the model whose replies are scored.

        Raises PolicyError, HeadError or UserError, one line, for what is no reward model.
        """
        self.name = f"model:{path}"
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.float32 if torch.device(device).type == "cpu" else "auto"
        self._model = load_classifier(path, dtype).to(device).requires_grad_(False)
        self._tokenizer = _tokenizer(path)
        self._label, name = _find_label(str(path), self._model, label)
        is_reward = self._model.config.num_labels == 1
        self.units = "raw, of the reward model" if is_reward else f"log-probability of {name}"
        self._bias = float(getattr(self._model.config, BIAS, 0.0))
        self._encode = _Encode(self._model, self._tokenizer, policy)
        self._limit = _longest(self._model, self._tokenizer)

    def score(self, rows: Sequence[RolloutRow]) -> list[Score]:
        """Raises UserError where the model itself fails."""
        scores: list[Score] = [Score(None)] * len(rows)
        encoded: dict[int, list[int]] = {}
        for index, row in enumerate(rows):
            try:
                ids = self._encode(row)
            except (DataError, PolicyError) as error:
                scores[index] = Score.none(f"{self.name}: {error}")
                continue
            if len(ids) > self._limit:
                scores[index] = Score.none(f"{self.name} reads {self._limit} tokens, here are {len(ids)}")
            else:
                encoded[index] = ids
        for batch in _batches(encoded):
            for index, number in zip(batch, self._run([encoded[i] for i in batch]), strict=True):
                is_number = math.isfinite(number)
                scores[index] = Score(number) if is_number else Score.none(f"{self.name} gave {number}")
        return scores

    @torch.inference_mode()
    def _run(self, rows: Sequence[list[int]]) -> list[float]:
        longest = max(map(len, rows))
        mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in rows])
        with _padding(self._model, self._tokenizer, {ids[-1] for ids in rows}) as pad:
            padded = torch.tensor([ids + [pad] * (longest - len(ids)) for ids in rows])
            device = self._model.device
            try:
                output = self._model(input_ids=padded.to(device), attention_mask=mask.to(device))
            except (RuntimeError, IndexError, ValueError) as error:
                reason = str(error).strip().splitlines()[0]
                raise UserError(
                    f"{self.name} fails on {len(rows)} replies of up to {longest} tokens: {reason}"
                ) from error
        numbers: list[float] = self._pick(output.logits.float()).tolist()
        return numbers

    def _pick(self, logits: Tensor) -> Tensor:
        config = self._model.config
        if config.num_labels == 1:
            return logits[:, 0] + self._bias
        if config.problem_type == "multi_label_classification":
            return nn.functional.logsigmoid(logits)[:, self._label]
        return logits.log_softmax(-1)[:, self._label]


class _Encode:
    """Tokens of a prompt with its reply."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, policy: str | Path
    ) -> None:
        self._tokenizer = tokenizer
        self._replies: ReplyEncoder | None = None
        self._are_same_tokens = False
        if hasattr(model.config, BIAS):
            self._replies = ReplyEncoder(tokenizer)
            self._are_same_tokens = tokenizer_hash(tokenizer) == tokenizer_hash(load_tokenizer(policy))
        single, pair = (tokenizer.num_special_tokens_to_add(pair=is_pair) for is_pair in (False, True))
        self._can_pair = pair > single

    def __call__(self, row: RolloutRow) -> list[int]:
        """Raises DataError or PolicyError where the model cannot read it."""
        if self._replies is not None:
            sampled = Sampled(row.token_ids, row.is_cut) if self._are_same_tokens else None
            reply = self._replies.encode(row.prompt, row.completion, sampled)
            return [*reply.prompt_ids, *reply.reply_ids]
        prompt = plain_prompt(row.prompt)
        if isinstance(prompt, str):
            return self._text(prompt + row.completion)
        if self._tokenizer.chat_template:
            turns = [*prompt, {"role": "assistant", "content": row.completion}]
            return encode_chat(self._tokenizer, turns, add_generation_prompt=False)
        if not self._can_pair:
            raise PolicyError("its tokenizer has no chat template, and the prompts are messages")
        return self._text("\n".join(turn["content"] for turn in prompt), row.completion)

    def _text(self, *texts: str) -> list[int]:
        ids: list[int] = self._tokenizer(*texts)["input_ids"]
        if not ids:
            raise DataError("prompt and reply are empty")
        return ids


def _tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(
            path, local_files_only=must_be_local(path), trust_remote_code=False
        )
    except Exception as error:  # whatever a corrupt file makes the loader raise
        reason = first_line(error)
        raise PolicyError(
            f"the tokenizer of the reward model '{path}' cannot be loaded ({reason})"
        ) from error


def _find_label(path: str, model: PreTrainedModel, label: str) -> tuple[int, str]:
    names = {int(index): str(name) for index, name in model.config.id2label.items()}
    if not label and len(names) == 1:
        return 0, ""
    for index, name in names.items():
        if label in (name, str(index)):
            return index, name
    known = ", ".join(names.values())
    asked = f"has no label {label!r}" if label else f"has {len(names)} labels"
    raise UserError(f"model:{path} {asked}: write model:{path}:LABEL with one of {known}")


def _longest(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens that the model and its tokenizer were made for."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None) or _NO_LIMIT
    for module in model.modules():
        # Some count positions from behind the padding's.
        if isinstance(module, nn.Embedding) and module.num_embeddings == limit and module.padding_idx:
            return min(limit - module.padding_idx - 1, int(tokenizer.model_max_length))
    return min(limit, int(tokenizer.model_max_length))


@contextmanager
def _padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, last: set[int]) -> Iterator[int]:
    """The token to pad with. Models that read the last token which is none are told of it; where the
    checkpoint has none, that is one which no row ends with. last: the last tokens of the rows."""
    config = model.config.get_text_config()
    own = config.pad_token_id
    if own is not None:
        yield own
        return
    candidates = (tokenizer.pad_token_id, *range(len(last) + 1))
    config.pad_token_id = next(i for i in candidates if i is not None and i not in last)
    try:
        yield config.pad_token_id
    finally:
        config.pad_token_id = None


def _batches(rows: dict[int, list[int]]) -> Iterator[list[int]]:
    """Keys by batches of like length, longest first."""
    batch: list[int] = []
    for index in sorted(rows, key=lambda index: len(rows[index]), reverse=True):
        if batch and (len(batch) == BATCH_ROWS or (len(batch) + 1) * len(rows[batch[0]]) > BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
