"""A reward part from a transformers `…ForSequenceClassification` over the policy's own backbone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from trimtab.guidance.errors import HeadError, PolicyError
from trimtab.guidance.heads.forms import Head, LinearScalar
from trimtab.guidance.heads.manifest import Manifest, Parts, ScalarPart
from trimtab.guidance.locate import must_be_local
from trimtab.guidance.policy import Policy
from trimtab.guidance.publish.score_layer import BIAS, MEAN, STD, score_layer


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
    layer = score_layer(model)
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
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise PolicyError(f"model '{path}' cannot be loaded ({reason}): name a safetensors folder") from error
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
        trained_on=trained_on,
    )
    return head.requires_grad_(False), manifest
