"""A reward part as a transformers `…ForSequenceClassification` with one label."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from trimtab.guidance.errors import HeadError
from trimtab.guidance.heads.forms import Head, LinearScalar
from trimtab.guidance.heads.manifest import Manifest
from trimtab.guidance.policy import Policy, output_embedding_input
from trimtab.guidance.publish.files import CARD_FILE
from trimtab.guidance.publish.package import staged
from trimtab.guidance.publish.score_layer import BIAS, MEAN, SCORE, STD, score_layer


def as_classifier(
    head: Head, manifest: Manifest, policy: Policy, pad_token_id: int | None
) -> PreTrainedModel:
    """The policy's backbone, shared with it, under a score layer with the reward part's weights.

    Its logit of a row is the raw reward without its bias, read after the last token that is not pad_token_id.

    Raises:
        HeadError: the head has no linear reward, or transformers no classification model that would compute
            the same; one line.
    """
    check_exportable(manifest)
    weight, bias = _linear_reward(head)
    config = copy.deepcopy(policy.model.config)
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise HeadError(f"transformers has no sequence classification for {config.model_type} models")
    config.num_labels, config.pad_token_id = 1, pad_token_id
    config.id2label, config.label2id = {0: "reward"}, {"reward": 0}
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    if type(model.base_model) is not type(policy.model.base_model):
        raise HeadError(f"{type(model).__name__} has another backbone than {type(policy.model).__name__}")
    setattr(model, model.base_model_prefix, policy.model.base_model)
    layer = score_layer(model)
    layer.weight = nn.Parameter(weight[None].to(policy.lm_head, copy=True), requires_grad=False)
    if layer.bias is not None:
        layer.bias = nn.Parameter(bias[None].to(policy.lm_head, copy=True), requires_grad=False)
    config_bias = 0.0 if layer.bias is not None else float(bias)
    for key, value in ((BIAS, config_bias), (MEAN, manifest.reward_mean), (STD, manifest.reward_std)):
        setattr(model.config, key, value)
    return model.eval()


def check_exportable(manifest: Manifest) -> None:
    """Raises HeadError unless the head's reward is one linear layer."""
    part = manifest.parts.reward
    if part is None:
        raise HeadError(f"head {manifest.name!r} has no reward part to export")
    if part.form != "linear" or part.bins:
        form = "a distribution over bins" if part.bins else "an mlp"
        raise HeadError(
            f"head {manifest.name!r}: its reward is {form}, which one score layer cannot hold: train it with "
            "--reward.form linear"
        )


def _linear_reward(head: Head) -> tuple[Tensor, Tensor]:
    assert isinstance(head.reward, LinearScalar), "check_exportable comes first"
    return head.reward.weight.detach(), head.reward.bias.detach()


@torch.no_grad()
def check_same(model: PreTrainedModel, head: Head, policy: Policy) -> None:
    """Runs both over a few random tokens.

    Raises:
        HeadError: the logit is not the reward part of what the policy's output embedding reads, further off
            than rounding explains.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(policy.identity.vocab_size, (1, 12), generator=generator).to(policy.device)
    tokens = tokens[tokens != model.config.pad_token_id][None]
    with output_embedding_input(policy.model, lambda h: h) as seen:
        policy.model(input_ids=tokens, use_cache=False)
    logit = model(input_ids=tokens, use_cache=False).logits[0, 0].float()
    h, layer = seen[0][0, -1].float(), getattr(model, SCORE)
    terms = h * _linear_reward(head)[0].to(h)
    error = (logit - terms.sum() - (0 if layer.bias is None else layer.bias.float())).abs()
    if not error <= 8 * torch.finfo(policy.lm_head.dtype).eps * (terms.abs().sum() + logit.abs()):
        raise HeadError(
            f"{type(model).__name__} does not score what heads of {policy.identity.base_model.name} read: "
            f"its logit is {error.item():.3g} off"
        )


def set_dtype(model: PreTrainedModel, head: Head, dtype: torch.dtype) -> None:
    """Rounds the backbone; the score layer is float32, whatever it is loaded in."""
    model.base_model.to(dtype)
    weight, bias = _linear_reward(head)
    layer = score_layer(model)
    layer.weight = nn.Parameter(weight[None].float(), requires_grad=False)
    if layer.bias is not None:
        layer.bias = nn.Parameter(bias[None].float(), requires_grad=False)


def check_empty(folder: Path) -> None:
    """Raises HeadError where writing a model as `folder` would replace something."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise HeadError(f"{folder} exists and is not empty: name another folder, or remove it")


def save_classifier(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, card: str, folder: Path
) -> None:
    """Writes the model with its tokenizer, safetensors only; whole or not at all.

    Raises:
        HeadError: the folder is not empty, or cannot be written.
    """
    check_empty(folder)
    try:
        with staged(folder) as new:
            model.save_pretrained(new)
            tokenizer.save_pretrained(new)
            (new / CARD_FILE).write_text(card, encoding="utf-8")
            for path in new.iterdir():
                path.chmod(0o644)  # safetensors lets nobody else read its files
            os.replace(new, folder)
    except OSError as error:
        raise HeadError(f"{folder} cannot be written ({error.strerror or error}): make room there") from error
