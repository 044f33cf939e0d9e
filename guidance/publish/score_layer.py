"""What export and import of a reward share: the one layer over a backbone, and keys of its config.json."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from trimtab.guidance.errors import HeadError

SCORE = "score"
BIAS, MEAN, STD = "trimtab_reward_bias", "trimtab_reward_mean", "trimtab_reward_std"
"""Keys of config.json, of what a score layer cannot carry. The raw reward is logit + bias, and
(raw - mean) / std is in standard units."""


def score_layer(model: PreTrainedModel) -> nn.Linear:
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
