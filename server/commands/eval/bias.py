"""Static bias of an evaluation: reads or fits it, chooses its setting on tuning prompts, and measures it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm.auto import tqdm

from trimtab.guidance.data.items import RolloutItem
from trimtab.guidance.data.load import load_rollouts
from trimtab.guidance.data.plain_rollouts import plain_only
from trimtab.guidance.evaluation.baselines.static_bias import (
    Bias,
    BiasTrial,
    as_tilt,
    bias_from,
    bias_settings,
    credit_by_token,
    load_static_bias,
    measure_static_bias,
    rank_trials,
    scaled,
)
from trimtab.guidance.evaluation.compare import at_equal_kl
from trimtab.guidance.evaluation.curve import Curve, CurvePoint, strengths_for
from trimtab.guidance.files import write_text
from trimtab.guidance.text.encoding import ReplyEncoder
from trimtab.guidance.text.prompt_form import form_of
from trimtab.server.commands.eval.bench import FINAL_REPLIES, Bench, Tuning, gold_of
from trimtab.server.commands.eval.config import FIT, EvalConfig
from trimtab.server.engine.engine import Engine

STATIC_BIAS = "static bias"
BIAS_FILE = "static_bias.json"
FINALISTS = 6  # settings that are tried at every price


@dataclass(frozen=True, slots=True)
class FoundBias:
    """trials: the settings it was chosen from, the best first."""

    bias: Bias
    trials: tuple[BiasTrial, ...] = ()


def find_bias(config: EvalConfig, engine: Engine, tuning: Tuning) -> FoundBias | None:
    """The constant to beat; None where none is asked for. One that is fitted is written to BIAS_FILE.

    Raises UserError where tuning prompts are judged, too; DataError for files that cannot be read.
    """
    if not config.static_bias:
        return None
    if config.static_bias != FIT:
        return FoundBias(load_static_bias(Path(config.static_bias), engine.policy.vocab_size))
    biases = list(_fitted(config, engine))
    found = _chosen(tuning.bench, biases) if config.has_bias_choice else FoundBias(biases[0][1])
    write_text(config.out / BIAS_FILE, json.dumps(found.bias) + "\n")
    return found


def bias_curve(bench: Bench, bias: Bias) -> Curve:
    strengths = bench.config.bias_strengths or _strengths(bench, bias, bench.kls)
    points = [bench.plain, *(_point(bench, bias, strength) for strength in sorted(set(strengths)))]
    return Curve(STATIC_BIAS, "static_bias", "strength", tuple(points))


def _strengths(bench: Bench, bias: Bias, kls: Sequence[float]) -> tuple[float, ...]:
    tilt = as_tilt(tuple(bias.items()), bench.features.policy)
    return strengths_for(bench.probe.constant(tilt), kls)


def _point(bench: Bench, bias: Bias, strength: float, num: int | None = None) -> CurvePoint:
    """num: of replies to each prompt, in place of the usual number."""
    tilt = scaled(bias, strength)
    num_replies = num or bench.plan.num_replies
    replies = bench.sample(f"static bias at {strength:g}", bias=tilt, num_replies=num_replies)
    # The engine takes a logit bias for part of the base: the policy's own logits tell what it costs.
    costs = measure_static_bias(tilt, bench.features, bench.judged.encode(replies))
    measured = [cost.of(reply) for reply, cost in zip(replies, costs, strict=True)]
    return bench.point(measured, strength)


def _fitted(config: EvalConfig, engine: Engine) -> Iterator[tuple[BiasTrial, Bias]]:
    """Every setting with its bias, yet untried; those that come to the same bias once."""
    items = plain_rollouts(config, engine, "a static bias")
    credits = {discount: credit_by_token(items, discount) for discount in dict.fromkeys(config.bias_discount)}
    seen: set[frozenset[tuple[int, float]]] = set()
    for setting in bias_settings(config.bias_discount, config.bias_shrinkage, config.bias_tokens):
        bias = bias_from(
            credits[setting.discount], shrinkage=setting.shrinkage, max_tokens=setting.max_tokens
        )
        key = frozenset(bias.items())
        if key not in seen:
            seen.add(key)
            yield BiasTrial(setting, len(bias), 0.0, 0.0), bias


def plain_rollouts(config: EvalConfig, engine: Engine, what: str) -> list[RolloutItem]:
    """Of --rollouts those that the policy itself drew, with their rewards. what: is fitted to them."""
    assert config.rollouts is not None
    policy, form = engine.policy, form_of(engine.policy.tokenizer, config.row_options.rows, [config.rollouts])
    rows = load_rollouts(config.rollouts, config.row_options, as_text=form == "text").rows
    encoder = ReplyEncoder(policy.tokenizer, form, end_ids=policy.eos_token_ids, extra_keys="ignore")
    skip = config.row_options.on_bad_rows == "skip"
    return [
        RolloutItem(encoder.encode(r.prompt, r.completion, r.sampled), r.reward, r.token_rewards)
        for r in plain_only(rows, config.rollouts, what, skip=skip)
    ]


def _chosen(bench: Bench, biases: Sequence[tuple[BiasTrial, Bias]]) -> FoundBias:
    """All at the middle price with few replies; the best of them at every price with more."""
    kls = sorted(set(bench.config.at_kl))
    middle = kls[(len(kls) - 1) // 2]
    num_points = len(biases) + min(FINALISTS, len(biases)) * len(bench.kls)
    with tqdm(total=num_points, desc="static bias: settings", unit="point") as bar:
        tried = []
        for trial, bias in biases:
            tried.append((_first_try(bench, trial, bias, middle), bias))
            bar.update()
        tried.sort(key=lambda one: one[0].merit, reverse=True)
        final = [(_final_try(bench, trial, bias, kls, bar), bias) for trial, bias in tried[:FINALISTS]]
    trials = rank_trials([trial for trial, _ in (*final, *tried[FINALISTS:])])
    chosen = next(bias for trial, bias in final if trial.setting == trials[0].setting)
    return FoundBias(chosen, tuple(trials))


def _first_try(bench: Bench, trial: BiasTrial, bias: Bias, kl: float) -> BiasTrial:
    [strength] = _strengths(bench, bias, (kl,))
    num = bench.config.num_replies // FINAL_REPLIES
    point = _point(bench, bias, strength, num)
    plain = bench.plain_like({(prompt, i) for prompt in range(bench.judging.num_prompts) for i in range(num)})
    gain = gold_of(bench, point).mean - gold_of(bench, plain).mean
    return replace(trial, first_kl=point.kl.mean, slope=gain / max(point.kl.mean, 1e-6) ** 0.5)


def _final_try(bench: Bench, trial: BiasTrial, bias: Bias, kls: Sequence[float], bar: tqdm) -> BiasTrial:
    points = [bench.plain]
    for strength in _strengths(bench, bias, bench.kls):
        points.append(_point(bench, bias, strength))
        bar.update()
    curve = Curve(STATIC_BIAS, "static_bias", "strength", tuple(points))
    gold = bench.judges.gold_names[0]
    found = {at.kl: at.estimate.mean for at in at_equal_kl([curve], [gold], kls, bench.judging).found}
    return replace(trial, scores=tuple(found.get(kl) for kl in kls))
