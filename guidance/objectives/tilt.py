"""What the tilt of an advantage does at the positions of a batch; the base's logits come from h again."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trimtab.guidance.fused_log_ratio import fused_log_ratio
from trimtab.guidance.head import Advantage
from trimtab.guidance.policy import Policy

MEASURED_POSITIONS = 256


class Tilt(nn.Module):
    """π₁ ∝ π₀ e^A of a head's advantage. Its parameters are the advantage's."""

    def __init__(self, advantage: Advantage, policy: Policy) -> None:
        super().__init__()
        self.advantage = advantage
        self.policy = policy
        self.lm_head = policy.lm_head.float()

    def log_ratio(self, h: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """ρ of the tokens and log π₀ of them, [N] each. h: [N, d]; tokens: i64[N]."""
        column, vocabulary = self.advantage.column(h.float()), self.advantage.vocabulary(self.lm_head)
        return fused_log_ratio(self.policy.logits, h, column, vocabulary, tokens)

    def drawn(self, h: Tensor, tokens: Tensor) -> Tensor:
        """A(s, a) of the tokens, [N]. h: [N, d]; tokens: i64[N]."""
        rows = nn.functional.embedding(tokens, self.advantage.vocabulary(self.lm_head))  # [N, r]
        return (rows * self.advantage.column(h.float())).sum(-1)

    def centred(self, h: Tensor, tokens: Tensor, base: Tensor) -> Tensor:
        """Ā(s, a) = A(s, a) − E_{π₀}[A(s, ·)] of the tokens a, which may be several for each state.

        h: [N, d]. tokens: i64[N] or i64[N, K]. base: π₀, [N, V]. Returns [N] or [N, K].

        A is a product of a column [N, r] with a vocabulary U [V, r]: only the rows of U for the tokens and
        their mean under π₀ are needed, and no advantage of the whole vocabulary.
        """
        vocabulary = self.advantage.vocabulary(self.lm_head)
        several = tokens if tokens.dim() == 2 else tokens[:, None]
        rows = nn.functional.embedding(several, vocabulary) - (base @ vocabulary)[:, None]  # [N, K, r]
        scores = (rows @ self.advantage.column(h.float())[:, :, None])[:, :, 0]
        return scores if tokens.dim() == 2 else scores[:, 0]

    @torch.no_grad()
    def measure(self, h: Tensor) -> dict[str, Tensor]:
        """Per token, at no more than MEASURED_POSITIONS of h [N, d], evenly: the entropy of the tilt, its KL
        to the base (nats), and how often their first tokens differ."""
        h = h[:: -(-len(h) // MEASURED_POSITIONS)]
        logits = self.policy.logits(h)
        base = logits.log_softmax(-1)
        tilt = (logits + self.advantage(h.float(), self.lm_head)).log_softmax(-1)
        probability = tilt.exp()
        return {
            "entropy": -(probability * tilt).sum(-1).mean(),
            "kl": (probability * (tilt - base)).sum(-1).mean(),
            "flip_rate": (tilt.argmax(-1) != base.argmax(-1)).float().mean(),
        }
