"""What the tilt of an advantage does at the positions of a batch; the base's logits come from h again."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trimtab.guidance.heads.forms import Advantage, TiedAdvantage
from trimtab.guidance.losses.fused_log_ratio import FusedTerms, fused_log_ratio
from trimtab.guidance.losses.vocabulary_tiles import Workspace
from trimtab.guidance.policy import Policy
from trimtab.guidance.training.objectives.base_mean import base_mean

MEASURED_POSITIONS = 256


class Tilt(nn.Module):
    """π₁ ∝ π₀ e^A of a head's advantage. Its parameters are the advantage's."""

    def __init__(self, advantage: Advantage, policy: Policy) -> None:
        super().__init__()
        self.advantage = advantage
        self.policy = policy
        self.lm_head = policy.lm_head.float()
        self._workspace = Workspace()
        self._watched = self.lm_head[:0]

    def log_ratio(self, h: Tensor, tokens: Tensor) -> FusedTerms:
        """ρ of the tokens, log π₀ of them, and the KL, [N] each. h: [N, d]; tokens: i64[N]."""
        column, vocabulary = self.advantage.factors(h.float(), self.lm_head)
        return fused_log_ratio(self.policy.write_logits, h, column, vocabulary, tokens, self._workspace)

    def drawn(self, h: Tensor, tokens: Tensor) -> Tensor:
        """A(s, a) of the tokens, [N]. h: [N, d]; tokens: i64[N]."""
        rows = nn.functional.embedding(tokens, self.advantage.vocabulary(self.lm_head))  # [N, r]
        return (rows * self.advantage.column(h.float())).sum(-1)

    @property
    def is_tied(self) -> bool:
        return isinstance(self.advantage, TiedAdvantage)

    def centred(self, h: Tensor, tokens: Tensor, mean: Tensor | None = None) -> Tensor:
        """Ā(s, a) = A(s, a) − E_{π₀}[A(s, ·)] of the tokens a, which may be several for each state.

        h: [N, d]. tokens: i64[N] or i64[N, K]. mean: E_{π₀}[W], [N, d], where a tied advantage's is known.
        Returns [N] or [N, K].

        A is a product of a column [N, r] with a vocabulary U [V, r]: only the rows of U for the tokens and
        their mean under π₀ are needed, and no advantage of the whole vocabulary.
        """
        several = tokens if tokens.dim() == 2 else tokens[:, None]
        column, vocabulary = self.advantage.factors(h.float(), self.lm_head)
        if mean is None:
            centre = base_mean(self.policy.write_logits, h, vocabulary, self._workspace)
        else:
            assert isinstance(self.advantage, TiedAdvantage)
            centre = mean @ self.advantage.up
        rows = nn.functional.embedding(several, vocabulary) - centre[:, None]  # [N, K, r]
        scores = (rows @ column[:, :, None])[:, :, 0]
        return scores if tokens.dim() == 2 else scores[:, 0]

    def watch(self, h: Tensor) -> None:
        """No more than MEASURED_POSITIONS of h [N, d], evenly, are what `measure` is of from now on, where
        they are trained on."""
        if torch.is_grad_enabled():
            self._watched = h[:: -(-len(h) // MEASURED_POSITIONS)]

    @torch.no_grad()
    def measure(self) -> dict[str, Tensor]:
        """Per token, at the positions watched: the entropy of the tilt, its KL to the base (nats), and how
        often their first tokens differ. It goes over the vocabulary several times: not for every step."""
        h = self._watched
        logits = self.policy.logits(h)
        base = logits.log_softmax(-1)
        column, vocabulary = self.advantage.factors(h.float(), self.lm_head)
        tilt = (logits + column @ vocabulary.T).log_softmax(-1)
        probability = tilt.exp()
        return {
            "entropy": -(probability * tilt).sum(-1).mean(),
            "kl": (probability * (tilt - base)).sum(-1).mean(),
            "flip_rate": (tilt.argmax(-1) != base.argmax(-1)).float().mean(),
        }
