"""How an exported classification model is to be read: its README.md."""

from __future__ import annotations

from trimtab.guidance.heads.manifest import Manifest
from trimtab.guidance.publish.score_layer import BIAS, MEAN, STD

_TEXT = """\
# Reward of the head {name}

`{architecture}` with one label: the backbone of `{base}`, untouched, under a score layer with the weights of
the head's linear reward part.

- Feed it the prompt as the chat template renders it up to the reply, then the reply, then the token that
  ends a reply, {ends}, and nothing after that: the score is read at the last token that is not padding.
- {padding}
- Its logit is the raw reward without its bias, {bias:.6g} (`{bias_key}` in config.json), for which a score
  layer has no place: a constant changes no preference.
- In standard units of the policy's own replies the reward is `(logit + {bias_key} - {mean_key}) / {std_key}`,
  with mean {mean:.6g} and standard deviation {std:.6g}.
"""
_PADDING = (
    "Pad with `{token}`, as the tokenizer here does: with one that ends replies, their end would go unread."
)
_NO_PADDING = (
    "Score one reply at a time: the tokenizer has no token to pad with that does not also end replies."
)


def export_card(
    manifest: Manifest, *, architecture: str, pad_token: str | None, ends: list[str], bias: float
) -> str:
    """Markdown. pad_token: None where rows cannot be padded. ends: tokens that end a reply."""
    return _TEXT.format(
        name=manifest.name,
        architecture=architecture,
        base=manifest.base_model.name,
        ends=" or ".join(f"`{token}`" for token in ends),
        padding=_NO_PADDING if pad_token is None else _PADDING.format(token=pad_token),
        bias=bias,
        bias_key=BIAS,
        mean_key=MEAN,
        std_key=STD,
        mean=manifest.reward_mean,
        std=manifest.reward_std,
    )
