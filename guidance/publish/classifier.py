"""Reward parts as transformers `…ForSequenceClassification` models: exports and imports them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from trimtab.guidance.errors import HeadError, PolicyError, first_line
from trimtab.guidance.files import whole_folder
from trimtab.guidance.heads.forms import Head, LinearScalar
from trimtab.guidance.heads.manifest import Manifest, Parts, ScalarPart, as_text
from trimtab.guidance.locate import must_be_local
from trimtab.guidance.policy import Policy, output_embedding_input
from trimtab.guidance.publish.package import CARD_FILE
from trimtab.guidance.text.ends import end_of_reply

SCORE = "score"
BIAS, MEAN, STD = "trimtab_reward_bias", "trimtab_reward_mean", "trimtab_reward_std"
"""Keys of config.json, of what a score layer cannot carry. The raw reward is logit + bias, and
(raw - mean) / std is in standard units."""


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
    layer = _score_layer(model)
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


def _score_layer(model: PreTrainedModel) -> nn.Linear:
    """Raises HeadError unless all that stands over the backbone is one linear layer with one output."""
    own = [name for name, _ in model.named_parameters() if not name.startswith(f"{model.base_model_prefix}.")]
    layer = getattr(model, SCORE, None)
    is_only = {name.split(".")[0] for name in own} == {SCORE}
    if not isinstance(layer, nn.Linear) or layer.out_features != 1 or not is_only:
        raise HeadError(
            f"{type(model).__name__} is not a backbone under one `{SCORE}` layer with one label: its own "
            f"parameters are {', '.join(own) or 'none'}"
        )
    return layer


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
    layer = _score_layer(model)
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
        with whole_folder(folder) as new:
            model.save_pretrained(new)
            tokenizer.save_pretrained(new)
            (new / CARD_FILE).write_text(card, encoding="utf-8")
    except OSError as error:
        raise HeadError(f"{folder} cannot be written ({error.strerror or error}): make room there") from error


@dataclass(frozen=True, slots=True)
class Classifier:
    """A sequence classification model with one label: weight f32[d], and what its config says of the bias and
    of standard units."""

    weight: Tensor
    bias: float
    mean: float
    std: float


def read_classifier(path: str | Path, policy: Policy) -> Classifier:
    """The score layer of a model whose backbone is the policy.

    Raises:
        PolicyError: there is no such model.
        HeadError: it is another model, or scores otherwise; one line that names what differs.
    """
    model = load_classifier(path)
    if model.config.num_labels != 1:
        raise HeadError(f"{path} has {model.config.num_labels} labels: a reward is a model with one")
    layer = _score_layer(model)
    _check_backbone(str(path), model.base_model, policy)
    bias = float(getattr(model.config, BIAS, 0.0)) + (0.0 if layer.bias is None else layer.bias.item())
    weight = layer.weight[0].detach().float()
    if not weight.isfinite().all():
        raise HeadError(f"{path}: its score layer holds numbers that are not finite")
    return Classifier(weight, bias, getattr(model.config, MEAN, 0.0), getattr(model.config, STD, 1.0))


def load_classifier(path: str | Path, dtype: torch.dtype | str = torch.float32) -> PreTrainedModel:
    """A trained sequence classification model from safetensors.

    Raises:
        PolicyError: there is no such model.
        HeadError: its weights are not those of a trained classification.
    """
    local = must_be_local(path)
    try:
        model, found = AutoModelForSequenceClassification.from_pretrained(
            path,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=local,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        raise PolicyError(
            f"model '{path}' cannot be loaded ({first_line(error)}): name a safetensors folder"
        ) from error
    missing = sorted(found["missing_keys"])
    if missing:
        raise HeadError(f"{path} is no trained sequence classification: it has no {missing[0]}")
    return model.eval()


def _check_backbone(path: str, backbone: nn.Module, policy: Policy) -> None:
    """Raises HeadError unless every tensor is the policy's, both rounded to bfloat16 as for fingerprints."""
    ours = dict(policy.model.base_model.named_parameters())
    theirs = dict(backbone.named_parameters())
    name = policy.identity.base_model.name
    for key in sorted(ours.keys() | theirs.keys()):
        if key not in ours or key not in theirs:
            raise HeadError(f"{path}: {key} is {'not ' if key in ours else 'only '}there, unlike in {name}")
        mine, other = ours[key].detach(), theirs[key].detach()
        if mine.shape != other.shape:
            raise HeadError(f"{path}: {key} is {list(other.shape)}, that of {name} is {list(mine.shape)}")
        if not torch.equal(mine.cpu().bfloat16(), other.cpu().bfloat16()):
            raise HeadError(
                f"{path}: {key} differs from that of {name}: a reward over a backbone that was trained too "
                "cannot become a head on a frozen one"
            )


def as_head(classifier: Classifier, policy: Policy, *, name: str, trained_on: str) -> tuple[Head, Manifest]:
    """A head with a linear reward part and no other."""
    identity = policy.identity
    parts = Parts(reward=ScalarPart(form="linear"))
    head = Head(parts, identity.hidden_size, identity.vocab_size)
    assert isinstance(head.reward, LinearScalar)
    head.reward.weight.data.copy_(classifier.weight)
    head.reward.bias.data.fill_(classifier.bias)
    manifest = Manifest(
        name=name,
        parts=parts,
        hidden_size=identity.hidden_size,
        vocab_size=identity.vocab_size,
        base_model=identity.base_model,
        reward_mean=classifier.mean,
        reward_std=classifier.std,
        trained_on=as_text(trained_on),
    )
    return head.requires_grad_(False), manifest


def end_tokens(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Those that a reply may end with, in a chat and out of one. Raises PolicyError where there is none."""
    kinds = (False, True) if tokenizer.chat_template else (False,)
    if tokenizer.eos_token_id is None and tokenizer.chat_template:
        kinds = (True,)
    return {end_of_reply(tokenizer, is_chat=is_chat) for is_chat in kinds}


def set_pad_token(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> int | None:
    """Gives the tokenizer a pad token that ends no reply, and returns its id; None where it has none to give.
    Classification models read the last token that is no padding, which should be the one that ends the reply.

    Only the end of a row matters: a special token that stands elsewhere in replies serves. vocab_size: rows
    of the policy's embedding, of which one may be left for a new token.
    """
    ends = end_tokens(tokenizer)
    for token in _pad_candidates(tokenizer):
        index = int(tokenizer.convert_tokens_to_ids(token))
        if index < vocab_size and index not in ends:
            tokenizer.pad_token = token
            return index
    if max(tokenizer.get_vocab().values()) + 1 < vocab_size:
        tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
        return int(tokenizer.pad_token_id)
    return None


def _pad_candidates(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    special = list(tokenizer.all_special_tokens)
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    if tokenizer.pad_token is not None:
        yield tokenizer.pad_token
    yield from (token for token in (*special, *added) if "pad" in token.lower())
    if tokenizer.unk_token is not None:
        yield tokenizer.unk_token
    yield from (token for token in (*added, *special) if token != tokenizer.bos_token)
    if tokenizer.bos_token is not None:
        yield tokenizer.bos_token
