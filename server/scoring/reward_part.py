"""Scores from a head's reward part, in its own raw units."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trimtab.guidance.data.rollouts import RolloutRow
from trimtab.guidance.errors import HeadError
from trimtab.guidance.features.source import StreamedFeatures
from trimtab.guidance.heads.store import load_head
from trimtab.guidance.policy import Policy
from trimtab.guidance.text.encoding import ReplyEncoder, Sampled
from trimtab.guidance.text.prompt_form import Rows
from trimtab.server.scoring.scorer import Score

RAW_UNITS = "raw, of the head's reward part"


class RewardPartScorer:
    """Reads each reply's end as the engine's finishing step does.

    Raw: what the part computes, before `reward_mean` and `reward_std` of the manifest make standard units of
    it, so that a value part trained on these rewards speaks the reward part's own units.
    """

    units = RAW_UNITS
    rows_at_once = 256

    def __init__(self, policy: Policy, folder: Path, rows: Rows = "auto") -> None:
        """rows: as what prompts that are strings were sampled to.

        Raises HeadError for a head without a reward part, or of another policy."""
        self._policy = policy
        self._head, manifest = load_head(folder, policy.identity, device=policy.device)
        if self._head.reward is None:
            raise HeadError(f"{folder}: head {manifest.name} has no reward part: train one, or name another")
        self._encoder = ReplyEncoder(policy.tokenizer, rows, end_ids=policy.end_ids, extra_keys="ignore")

    def score(self, rows: Sequence[RolloutRow]) -> list[Score]:
        assert self._head.reward is not None
        replies = [
            self._encoder.encode(row.prompt, row.completion, Sampled(row.token_ids, row.is_cut))
            for row in rows
        ]
        ends = StreamedFeatures(self._policy).last(replies).to(self._policy.device).float()  # [B, d]
        return [Score(reward) for reward in self._head.reward(ends).tolist()]
