"""What writes the replies that an on-policy loss learns from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from trimtab.guidance.data.items import RolloutItem
from trimtab.guidance.data.rows import ReadColumns
from trimtab.guidance.heads.forms import Head
from trimtab.guidance.text.encoding import EncodedReply
from trimtab.guidance.training.examples import PromptItem


@dataclass(frozen=True, slots=True)
class Draw:
    """A reply to the prompts' prompt-th. problem: why the scorer gave it no reward."""

    prompt: int
    rollout: RolloutItem
    problem: str = ""

    def to_json(self) -> str:
        """One line, from which another process has the same draw, bit for bit."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Draw:
        read: dict[str, Any] = json.loads(text)
        rollout = read["rollout"]
        reply, rewards = rollout["reply"], rollout["token_rewards"]
        encoded = EncodedReply(tuple(reply["prompt_ids"]), tuple(reply["reply_ids"]), reply["is_cut"])
        item = RolloutItem(encoded, rollout["reward"], None if rewards is None else tuple(rewards))
        return cls(read["prompt"], item, read["problem"])


class Sampler(Protocol):
    @property
    def is_scoring(self) -> bool:
        """Whether draws come with rewards; else the head's own reward part gives them."""
        ...

    @property
    def reads(self) -> ReadColumns:
        """Columns of the prompts' rows that scoring reads."""
        ...

    def sample(
        self,
        head: Head,
        strength: float,
        prompts: Sequence[PromptItem],
        num_replies: int,
        seed: int,
        first: int = 0,
    ) -> list[Draw]:
        """Replies of the policy as the head's advantage tilts it at `strength`, at temperature 1; the same
        ones for the same arguments. In the prompts' order, num_replies to each.

        first: the number of the first prompt, from which the others count on. A prompt's replies follow from
        seed and number, so that a share of many prompts gets what it would get among them.
        """
        ...
