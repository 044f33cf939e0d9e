"""A writer that runs the policy token by token, and runs of on-policy losses with it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trimtab.guidance.data.items import PromptItem, RolloutItem
from trimtab.guidance.data.rows import ReadColumns
from trimtab.guidance.heads.forms import Head
from trimtab.guidance.policy import Policy, output_embedding_input
from trimtab.guidance.text.encoding import EncodedReply
from trimtab.guidance.training.config import (
    AdvantageConfig,
    OnPolicyConfig,
    OptimiserConfig,
    TrainConfig,
    ValueConfig,
)
from trimtab.guidance.training.on_policy.collect import Draw

WANTED, LENGTH = range(8, 13), 5  # the words "c" to "g"
Score = Callable[[list[int]], Any]


def count_wanted(tokens: list[int]) -> float:
    return float(sum(token in WANTED for token in tokens))


def mark_wanted(tokens: list[int]) -> list[float]:
    return [float(token in WANTED) for token in tokens]


class SlowWriter:
    """Replies of LENGTH tokens, cut. score: of drawn tokens -> a number, one per token, a problem's name, or
    None where the head's own reward is to score."""

    def __init__(self, policy: Policy, score: Score | None = count_wanted) -> None:
        self.policy, self.score = policy, score
        self.calls: list[int] = []

    @property
    def is_scoring(self) -> bool:
        return self.score is not None

    @property
    def reads(self) -> ReadColumns:
        return ReadColumns()

    @torch.no_grad()
    def write(
        self,
        head: Head,
        strength: float,
        prompts: Sequence[PromptItem],
        num_replies: int,
        seed: int,
        first: int = 0,
    ) -> list[Draw]:
        self.calls.append(seed)
        rows = [prompt.prompt_ids for prompt in prompts for _ in range(num_replies)]
        noise = torch.cat(
            [self._noise(seed + 7919 * (first + i), num_replies) for i in range(len(prompts))], 1
        )
        ids = torch.tensor(rows)  # prompts of one length
        for step in range(LENGTH):
            with output_embedding_input(self.policy.model, lambda h: h[:, -1:]) as seen:
                self.policy.model(input_ids=ids, use_cache=False)
            h = seen[0][:, -1]
            logits = self.policy.logits(h) + strength * head.advantage(h, self.policy.lm_head)
            logits[:, 3] = -torch.inf  # no reply ends
            drawn = (logits + noise[step]).argmax(-1, keepdim=True)
            ids = torch.cat([ids, drawn], 1)
        return [
            self._draw(first + row // num_replies, prompts[row // num_replies], tokens[-LENGTH:])
            for row, tokens in enumerate(ids.tolist())
        ]

    def _noise(self, seed: int, num_replies: int) -> Tensor:
        """Gumbel noise [LENGTH, num_replies, V] of a prompt's own."""
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.rand(LENGTH, num_replies, self.policy.vocab_size, generator=generator)
        return -(-drawn.clamp(min=1e-9).log()).log()

    def _draw(self, index: int, prompt: PromptItem, tokens: list[int]) -> Draw:
        reply = EncodedReply(prompt.prompt_ids, (*tokens, 3), is_cut=True)
        score = None if self.score is None else self.score(tokens)
        if isinstance(score, str):
            return Draw(index, RolloutItem(reply), f"prompt {index}: {score}")
        if isinstance(score, list):
            return Draw(index, RolloutItem(reply, sum(score), tuple(score)))
        return Draw(index, RolloutItem(reply, score))


def write_prompts(folder: Path) -> Path:
    path = folder / "prompts.jsonl"
    letters = "abdefghij"
    rows = [json.dumps({"prompt": f"{a} {b}"}) for a in letters for b in letters[:3]]
    path.write_text("\n".join(rows))
    return path


def make_config(policy_folder: Path, folder: Path, loss: str = "ppo", **changes: Any) -> TrainConfig:
    """24 replies an iteration, in two steps. changes: of OnPolicyConfig, AdvantageConfig or TrainConfig."""

    def of(cls: type[Any], **defaults: Any) -> dict[str, Any]:
        names = {field.name for field in dataclasses.fields(cls)}
        return defaults | {name: changes[name] for name in names & changes.keys()}

    optimiser = OptimiserConfig(
        epochs=changes.pop("epochs", 3), batch_size=12, learning_rate=changes.pop("rate", 0.03)
    )
    own = of(AdvantageConfig, loss=loss, rank=8, tau=0.05, optimiser=optimiser)
    settings = of(OnPolicyConfig, score="test", num_prompts=6, num_replies=4, max_tokens=LENGTH)
    rest = of(TrainConfig, held_out=0.2, rows="text", show_progress=False, parts=("advantage",))
    return TrainConfig(
        name="tiny",
        model=policy_folder,
        prompts=write_prompts(folder),
        head_folder=folder / "head",
        run_folder=folder / "run",
        advantage=AdvantageConfig(**own),
        value=ValueConfig(width=8),
        on_policy=OnPolicyConfig(**settings),
        **rest,
    )
