"""How replies are sampled and scored between the updates of an on-policy loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class OnPolicyConfig:
    """Of losses that learn from replies of the policy as the head tilts it now: ppo, rloo, grpo, reinforce.

    An iteration samples replies, scores them and goes over them; advantage.optimiser.batch_size replies make
    a batch, and its epochs count the times that each prompt is replied to. Several processes share an
    iteration's prompts, each with an engine of its own, and its batches.

    score: `function:MODULE:FUNCTION`, called with (prompt, reply) or (prompt, reply, tokens), which returns a
    number or one per token, or as TRL calls reward functions with (prompts, completions, **columns of the
    prompt file); `reward:NAME_OR_FOLDER`, the reward part of a head; `model:PATH`, a
    …ForSequenceClassification; or `judge:URL`: see `trimtab rollouts --help`. Without it the head's own
    reward part scores.
    start_strength: at which the head of start_from begins; by default at its optimum, or without one at 1.
    num_prompts: of an iteration.
    num_replies: to each of its prompts; rloo and grpo compare them.
    max_tokens: of a reply.
    passes: ppo, grpo: how often an iteration's replies are gone over.
    kl_estimate: `exact` sums over the vocabulary at every token, `sampled` reads the drawn token's
    log-ratio: noisier.
    max_kl: nats per reply from the policy, on average, that the head may reach.
    on_max_kl: when it is passed: `stop`, and keep the head as it last was within it, or `adapt`: raise
    advantage.tau until the replies are back within it.
    lam: ppo: of generalised advantage estimation; 1 trusts the rewards alone.
    value_weight: ppo, reinforce: weight of the loss of the value that they learn beside.
    entropy_weight: ppo: weight of the tilt's entropy.
    max_num_seqs: replies that are sampled at the same time.
    """

    score: str = ""
    start_strength: float | None = None
    num_prompts: int = 128
    num_replies: int = 4
    max_tokens: int = 128
    passes: int = 1
    kl_estimate: Literal["exact", "sampled"] = "exact"
    max_kl: float = 10.0
    on_max_kl: Literal["stop", "adapt"] = "stop"
    lam: float = 0.95
    value_weight: float = 0.1
    entropy_weight: float = 0.0
    max_num_seqs: int = 128

    def __post_init__(self) -> None:
        for name in ("num_prompts", "num_replies", "max_tokens", "passes", "max_num_seqs"):
            if getattr(self, name) < 1:
                raise ValueError(f"on_policy.{name} must be at least 1, got {getattr(self, name)}")
        if not (self.max_kl > 0 and math.isfinite(self.max_kl)):
            raise ValueError(f"on_policy.max_kl must be a number above 0, got {self.max_kl}")
        if self.start_strength is not None and not 0 < abs(self.start_strength) < math.inf:
            raise ValueError(f"on_policy.start_strength must be a number but 0, got {self.start_strength}")
        if not 0 <= self.lam <= 1:
            raise ValueError(f"on_policy.lam must be in 0…1, got {self.lam}")
        for name in ("value_weight", "entropy_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"on_policy.{name} must be 0 or more, got {getattr(self, name)}")

    @property
    def num_samples(self) -> int:
        """Replies of an iteration."""
        return self.num_prompts * self.num_replies


READS: dict[str, tuple[str, ...]] = {
    "ppo": ("passes", "lam", "value_weight", "entropy_weight"),
    "rloo": (),
    "grpo": ("passes",),
    "reinforce": ("value_weight",),
}
"""Which options of those that not all losses read a loss reads."""
