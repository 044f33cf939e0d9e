"""Activation steering: adds to a layer's hidden states the mean difference of good replies and bad ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from trimtab.guidance.data.items import RolloutItem
from trimtab.guidance.errors import DataError, PolicyError
from trimtab.guidance.policy import Policy
from trimtab.guidance.text.encoding import EncodedReply

MAX_REPLIES = 128  # of either side, which a mean of so many numbers needs no more of
_SHARE = 4  # a quarter of the replies to a prompt on either side
_COEFFICIENTS = (2.0**-6, 2.0**6)


@dataclass(frozen=True, slots=True, eq=False)
class Steering:
    """vector: f32[d], added times a coefficient to what this layer (from 0) gives, at every position of the
    prompt and the reply. Coefficient 1 is the mean difference itself."""

    layer: int
    vector: Tensor

    @contextmanager
    def of(self, model: PreTrainedModel, coefficient: float) -> Iterator[None]:
        """Within, the model runs steered. Coefficient 0 changes no bit. Keys and values of the layers above
        are others than the plain ones: a cache of these must not be shared."""
        if coefficient == 0:
            yield
            return
        addend = coefficient * self.vector

        def add(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
            if isinstance(output, tuple):
                return (output[0] + addend.to(output[0]), *output[1:])
            return output + addend.to(output)

        handle = decoder_layers(model)[self.layer].register_forward_hook(add)
        try:
            yield
        finally:
            handle.remove()


@dataclass(frozen=True, slots=True)
class SteeringTrial:
    """One layer on the tuning prompts, at one coefficient. slope: gold above plain ÷ √KL."""

    layer: int
    coefficient: float
    kl: float
    slope: float
    is_chosen: bool = False


def fit_steering(
    policy: Policy, rollouts: Sequence[RolloutItem], layers: Sequence[int], *, show_progress: bool = True
) -> list[Steering]:
    """Of each layer the mean of its output over replies of high reward minus that over replies of low reward;
    of a reply the mean over its tokens (Rimsky 2024, with rewards in place of given pairs).

    Raises:
        DataError: no rollouts, or all rewards are equal.
    """
    high, low = contrast(rollouts)
    with tqdm(total=len(high) + len(low), desc="steering", unit="reply", disable=not show_progress) as bar:
        means = [_mean_outputs(policy, replies, layers, bar) for replies in (high, low)]
    vectors = means[0] - means[1]  # [len(layers), d]
    return [Steering(layer, vector) for layer, vector in zip(layers, vectors, strict=True)]


def contrast(rollouts: Sequence[RolloutItem]) -> tuple[list[EncodedReply], list[EncodedReply]]:
    """The replies of each prompt that are in the top and in the bottom quarter by reward, at least one each;
    of all prompts together where none has two replies. Of more than MAX_REPLIES evenly spread ones.

    By hand: rewards 1, 5, 3 to one prompt: high is the second, low the first.

    Raises DataError where all rewards are equal.
    """
    groups: defaultdict[tuple[int, ...], list[RolloutItem]] = defaultdict(list)
    for rollout in (one for one in rollouts if one.is_rewarded):
        groups[rollout.reply.prompt_ids].append(rollout)
    if all(len(group) < 2 for group in groups.values()):
        groups = defaultdict(list, {(): [one for group in groups.values() for one in group]})
    high: list[EncodedReply] = []
    low: list[EncodedReply] = []
    for group in groups.values():
        ordered = sorted(group, key=_reward)
        num = max(1, len(ordered) // _SHARE)
        if len(ordered) > 1 and _reward(ordered[0]) < _reward(ordered[-1]):
            low += [one.reply for one in ordered[:num]]
            high += [one.reply for one in ordered[-num:]]
    if not high:
        raise DataError(
            "activation steering cannot be fitted: the rollouts are not scored, or all rewards are equal"
        )
    return _spread(high), _spread(low)


def coefficients_for(mean_kl: Callable[[float], float], kls: Sequence[float]) -> tuple[float, ...]:
    """For each of `kls` the coefficient at which mean_kl is about that: read between powers of two, linearly
    in √KL, since each asks for a run of the policy. mean_kl: nats per reply at a coefficient."""
    known = {1.0: mean_kl(1.0)}
    while known[max(known)] < max(kls) and max(known) < _COEFFICIENTS[1]:
        known[2 * max(known)] = mean_kl(2 * max(known))
    while known[min(known)] > min(kls) and min(known) > _COEFFICIENTS[0]:
        known[min(known) / 2] = mean_kl(min(known) / 2)
    x = np.array([0.0, *sorted(known)])
    roots = np.maximum.accumulate(np.sqrt([0.0, *(known[c] for c in sorted(known))]))
    return tuple(dict.fromkeys(round(float(np.interp(kl**0.5, roots, x)), 4) for kl in kls))


def rank_layers(trials: Sequence[SteeringTrial]) -> list[SteeringTrial]:
    """The best first, which is marked as chosen."""
    first, *others = sorted(trials, key=lambda trial: -trial.slope)
    return [replace(first, is_chosen=True), *others]


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """Raises PolicyError for an architecture whose layers are not found."""
    num_layers = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_layers:
            return module
    raise PolicyError(f"{type(model).__name__} has no list of its {num_layers} layers to steer")


def _reward(rollout: RolloutItem) -> float:
    return sum(rollout.rewards())


def _spread(replies: list[EncodedReply]) -> list[EncodedReply]:
    places = np.linspace(0, len(replies) - 1, min(len(replies), MAX_REPLIES)).round().astype(int)
    return [replies[i] for i in places]


@torch.no_grad()
def _mean_outputs(
    policy: Policy, replies: Sequence[EncodedReply], layers: Sequence[int], bar: tqdm
) -> Tensor:
    """f32[len(layers), d]"""
    modules, total = decoder_layers(policy.model), torch.zeros(())
    for reply in replies:
        seen: dict[int, Tensor] = {}
        tokens = slice(len(reply.prompt_ids), len(reply.prompt_ids) + reply.num_drawn)
        with ExitStack() as hooks:
            for layer in layers:
                handle = modules[layer].register_forward_hook(partial(_keep, seen, layer, tokens))
                hooks.callback(handle.remove)
            ids = torch.tensor([reply.prompt_ids + reply.reply_ids], device=policy.device)
            policy.model.base_model(input_ids=ids, use_cache=False)
        total = total + torch.stack([seen[layer] for layer in layers])
        bar.update()
    return total / len(replies)


def _keep(
    seen: dict[int, Tensor], layer: int, tokens: slice, _: nn.Module, __: tuple[Any, ...], output: Any
) -> None:
    hidden = output[0] if isinstance(output, tuple) else output  # [1, T, d]
    seen[layer] = hidden[0, tokens].float().mean(0)
