"""Experts: further models of the policy's vocabulary, run over the tokens of the lanes that ask for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from trimtab.guidance.errors import ModelError
from trimtab.guidance.policy import Policy
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.model_runner import ModelRunner
from trimtab.server.engine.native.choose import prepare
from trimtab.server.engine.policy import ServedPolicy, load_served
from trimtab.server.engine.scheduler import Purpose, Step
from trimtab.server.engine.step_state import StepState

Models = Mapping[str, ServedPolicy]


def load_experts(config: EngineConfig, policy: ServedPolicy) -> dict[str, ServedPolicy]:
    """The models that a resolved configuration names, in its order, checked as the policy is.

    Raises ModelError with one line that names the expert and what is wrong with it.
    """
    models = {}
    for name, path in config.experts.items():
        try:
            served = load_served(
                path,
                name=name,
                device=str(policy.device),
                dtype=config.dtype,
            )
            _check_vocabulary(served, policy)
            prepare(served, config)
        except ModelError as error:
            raise ModelError(f"--expert {name}: {error}") from error
        models[name] = served
    return models


def _check_vocabulary(expert: ServedPolicy, policy: ServedPolicy) -> None:
    """Logits are added token by token, so that each id must be the same token."""
    theirs, ours = (_tokens(model.frozen) for model in (expert, policy))
    if theirs == ours:
        return
    if len(theirs) != len(ours):
        what = f"it has {len(theirs)} tokens, and {policy.name} {len(ours)}"
    else:
        at = next(i for i, pair in enumerate(zip(theirs, ours, strict=True)) if pair[0] != pair[1])
        what = f"its token {at} is {theirs[at]!r}, and that of {policy.name} {ours[at]!r}"
    raise ModelError(f"{what}; take a model with the policy's own tokenizer")


def _tokens(policy: Policy) -> list[str | None]:
    """By id, as many as there are logits."""
    tokens = {index: token for token, index in policy.tokenizer.get_vocab().items()}
    return [tokens.get(index) for index in range(policy.vocab_size)]


class Experts:
    """Runs further models beside the policy. Each has a cache of its own, of as many blocks as the policy's,
    and goes by the lanes' block tables: what a lane has in a block of one it has in the same block of the
    other, through forks, copies and preemption. Lanes share a prefix where the same models have computed it,
    which their roots tell.

    models: by name. state: the policy's.
    """

    def __init__(self, models: Models, config: EngineConfig, num_blocks: int, state: StepState) -> None:
        self.models = models
        self._runners = {
            name: ModelRunner(model, config, num_blocks, (), state) for name, model in models.items()
        }

    @property
    def lengths(self) -> dict[str, int]:
        """By name, how many tokens each can read."""
        return {name: runner.policy.max_model_len for name, runner in self._runners.items()}

    def root(self, names: Iterable[str]) -> int:
        """Of a lane over whose tokens these run; see Lane."""
        places = list(self._runners)
        return -sum(1 << places.index(name) for name in names)

    @torch.inference_mode()
    def run(self, step: Step) -> dict[str, Tensor]:
        """By name, the logits f32[R, V] after the step's drawing rows that ask for it, in their order. The
        policy has run the step, and nothing has been drawn yet."""
        logits = {}
        for name, runner in self._runners.items():
            rows = [row for row in step.rows if name in row.choice.request.guidance.rule.experts]
            if not rows:
                continue
            hidden = runner.run(Step(rows, step.copies))
            num_drawn = sum(row.purpose is Purpose.DRAW for row in rows)
            if num_drawn:
                h = hidden.h[: len(hidden.h) - hidden.num_read]
                logits[name] = runner.policy.logits(h, hidden.logits)[:num_drawn]
        return logits

    def clear_blocks(self, blocks: Sequence[int]) -> None:
        """See KVCache."""
        for runner in self._runners.values():
            runner.cache.clear_blocks(blocks)
