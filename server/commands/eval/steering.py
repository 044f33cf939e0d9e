"""Activation steering of an evaluation: fits it, chooses its layer on tuning prompts, and measures it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from torch import Tensor
from tqdm.auto import tqdm

from trimtab.guidance.errors import UserError
from trimtab.guidance.evaluation.baselines.activation_steering import (
    Steering,
    SteeringTrial,
    coefficients_for,
    decoder_layers,
    fit_steering,
    rank_layers,
)
from trimtab.guidance.evaluation.baselines.cost import costs_in_another_state
from trimtab.guidance.evaluation.curve import Curve, CurvePoint
from trimtab.guidance.features.source import FeatureCache
from trimtab.server.commands.eval.bench import Bench, Tuning, gold_of
from trimtab.server.commands.eval.bias import plain_rollouts
from trimtab.server.commands.eval.config import EvalConfig

ACTIVATION_STEERING = "activation steering"
_PROBED_REPLIES = 8


@dataclass(frozen=True, slots=True)
class FoundSteering:
    """trials: the layers it was chosen from, the best first."""

    steering: Steering
    trials: tuple[SteeringTrial, ...] = ()


def find_steering(config: EvalConfig, tuning: Tuning) -> FoundSteering | None:
    """None where none is asked for. Raises UserError for a layer that is not there, DataError for rollouts
    that tell nothing."""
    if not config.activation_steering:
        return None
    engine, policy = tuning.engine, tuning.features.policy
    layers = _layers(config, len(decoder_layers(policy.model)))
    fitted = fit_steering(policy, plain_rollouts(config, engine, "activation steering"), layers)
    if len(fitted) == 1:
        return FoundSteering(fitted[0])
    kls = sorted(set(config.at_kl)) or [2.0]
    middle = kls[(len(kls) - 1) // 2]
    bar = tqdm(fitted, desc="activation steering: layers", unit="layer")
    trials = rank_layers([_tried(tuning.bench, steering, middle) for steering in bar])
    chosen = next(steering for steering in fitted if steering.layer == trials[0].layer)
    return FoundSteering(chosen, tuple(trials))


def steering_curve(bench: Bench, steering: Steering) -> Curve:
    given = bench.config.steering_coefficients
    coefficients = given or _coefficients(bench, steering, bench.kls)
    points = [_point(bench, steering, coefficient) for coefficient in sorted(set(coefficients) - {0.0})]
    ordered = sorted([bench.plain, *points], key=lambda point: point.knob)
    return Curve(ACTIVATION_STEERING, "activation_steering", "coefficient", tuple(ordered))


def _layers(config: EvalConfig, num: int) -> tuple[int, ...]:
    """Those asked for, or at a quarter, half and three quarters of the depth where one can be chosen."""
    wrong = [layer for layer in config.steering_layers if not 0 <= layer < num]
    if wrong:
        raise UserError(f"--steering-layers {wrong[0]}: the policy has layers 0…{num - 1}")
    depths = (0.25, 0.5, 0.75) if config.tuning_prompts is not None else (0.5,)
    return tuple(dict.fromkeys(config.steering_layers or (int(depth * num) for depth in depths)))


def _tried(bench: Bench, steering: Steering, kl: float) -> SteeringTrial:
    [coefficient] = _coefficients(bench, steering, (kl,))
    num = bench.config.tuning_replies
    point = _point(bench, steering, coefficient, num)
    plain = bench.plain_like({(prompt, i) for prompt in range(bench.judging.num_prompts) for i in range(num)})
    gain = gold_of(bench, point).mean - gold_of(bench, plain).mean
    slope = gain / max(point.kl.mean, 1e-6) ** 0.5
    return SteeringTrial(steering.layer, coefficient, point.kl.mean, slope)


def _point(bench: Bench, steering: Steering, coefficient: float, num: int | None = None) -> CurvePoint:
    """num: of replies to each prompt, in place of the usual number."""
    label, num_replies = f"{ACTIVATION_STEERING} at {coefficient:g}", num or bench.plan.num_replies
    with steering.of(bench.engine.policy.model, coefficient):
        replies = bench.sample(label, num_replies=num_replies)
    encoded, model = bench.judged.encode(replies), bench.features.policy.model

    def states(here: slice) -> Sequence[Tensor]:
        with steering.of(model, coefficient):
            return bench.features.get(encoded[here])

    return bench.point(bench.measured_in_another_state(replies, states), coefficient)


def _coefficients(bench: Bench, steering: Steering, kls: Sequence[float]) -> tuple[float, ...]:
    """Where it costs about so many nats along a few plain replies."""
    step = max(1, len(bench.replies) // _PROBED_REPLIES)
    replies = bench.judged.encode(bench.replies[::step])
    policy = bench.features.policy
    plain = FeatureCache(policy, show_progress=False)

    def mean_kl(coefficient: float) -> float:
        def states(here: slice) -> Sequence[Tensor]:
            with steering.of(policy.model, coefficient):
                return bench.features.get(replies[here])

        return fmean(cost.kl for cost, _ in costs_in_another_state(plain, replies, states))

    return coefficients_for(mean_kl, kls)
