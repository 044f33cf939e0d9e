"""The frontier of an evaluation: curves of heads and of what they must beat, sampled, judged and compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from trimtab.guidance.data import load_prompts, load_rollouts
from trimtab.guidance.encoding import EncodedReply, ReplyEncoder
from trimtab.guidance.errors import DataError, HeadError
from trimtab.guidance.evaluation.best_of_n import best_of_n
from trimtab.guidance.evaluation.curve import Curve, CurvePoint, Judging, judge_point
from trimtab.guidance.evaluation.equal_kl import at_equal_kl
from trimtab.guidance.evaluation.external import External, load_external
from trimtab.guidance.evaluation.overoptimisation import find_overoptimisation
from trimtab.guidance.evaluation.reply import Heads, Reply, Scores
from trimtab.guidance.evaluation.report import Example, FrontierReport
from trimtab.guidance.evaluation.static_bias import (
    Bias,
    bias_kl,
    fit_static_bias,
    load_static_bias,
    measure_static_bias,
    scaled,
)
from trimtab.guidance.evaluation.statistics import resample_prompts
from trimtab.guidance.evaluation.strengths import head_kl, strengths_for
from trimtab.guidance.features import FeatureSource
from trimtab.guidance.items import RolloutItem
from trimtab.guidance.manifest import load_manifest
from trimtab.guidance.message import Prompt
from trimtab.guidance.store import load_head
from trimtab.server.commands.errors import UserError
from trimtab.server.commands.eval import FIT, EvalConfig
from trimtab.server.commands.eval_run import Materials
from trimtab.server.commands.eval_sampling import Sampler, fitting_prompts
from trimtab.server.commands.eval_scores import Judges, check_reward_head, make_judges, reward_name
from trimtab.server.commands.weights import parse_weights
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.policy import ModelError
from trimtab.server.engine.request import MAX_STRENGTH, SamplingParams

STATIC_BIAS = "static bias"
NUM_EXAMPLES = 3
_PROBED_REPLIES = 64


@dataclass(frozen=True, slots=True)
class Plain:
    """Replies of the policy itself: where every curve begins, and what best-of-n chooses from."""

    replies: list[Reply]
    scores: Scores
    point: CurvePoint


@dataclass(frozen=True, slots=True)
class Bench:
    """What every curve is measured with."""

    config: EvalConfig
    sampler: Sampler
    judges: Judges
    judging: Judging
    plain: Plain

    def point(self, replies: Sequence[Reply], knob: float) -> CurvePoint:
        return judge_point(replies, self.judges(replies), knob, self.judging)

    @property
    def kls(self) -> tuple[float, ...]:
        """Costs in nats per reply that a curve goes through where no strengths are given."""
        kls = self.config.at_kl
        return (0.8 * kls[0], *kls[1:-1], 1.25 * kls[-1]) if kls else (1.0, 4.0)

    def probed(self) -> list[EncodedReply]:
        """A few of the plain replies, along which is looked how strengths cost."""
        replies = self.plain.replies
        return self.sampler.encode(replies[:: max(1, len(replies) // _PROBED_REPLIES)])


def judge_frontier(materials: Materials) -> FrontierReport:
    """Raises UserError, HeadError, DataError or InvalidRequestError with one line."""
    config = materials.config
    assert config.prompts is not None
    prompts = load_prompts(config.prompts, config.on_bad_rows, config.extra_columns).rows
    engine, gold_head = _load_engine(materials)
    fitting, too_long = fitting_prompts(engine, prompts[: config.num_prompts], config.max_tokens)
    if too_long and config.on_bad_rows == "refuse":
        raise DataError(
            f"{config.prompts}: {len(too_long)} prompts and {config.max_tokens} tokens of reply do not fit "
            f"the context, first row {too_long[0]}: leave them out with --on-bad-rows skip"
        )
    kept = [number for number in range(len(prompts[: config.num_prompts])) if number not in set(too_long)]
    steering = _steering(config, engine, materials)
    external = [load_external(path, {row: i for i, row in enumerate(kept)}) for path in config.external]
    bias = _bias(config, engine, materials)
    bench = _bench(config, engine, [prompt for prompt, _ in fitting], [ids for _, ids in fitting], gold_head)
    curves, examples = [], list[Example]()
    for name, heads in steering.items():
        curve, shown = _head_curve(bench, name, heads, materials)
        curves.append(curve)
        examples += shown
    if bias:
        curves.append(_bias_curve(bench, bias, materials.features))
    curves += [_external_curve(bench, one) for one in external]
    curves += _best_of_n_curves(bench)
    if not curves:
        curves.append(Curve("policy", "head", "strength", (bench.plain.point,)))
    left_out = (
        [f"{len(too_long)} prompts do not fit the context, first row {too_long[0]}"] if too_long else []
    )
    return _report(bench, curves, examples, [*left_out, *bench.judges.told()])


def _load_engine(materials: Materials) -> tuple[Engine, str]:
    """The engine, and the name of the head that gold scores are read from; "" for another judge."""
    config, engine_config = materials.config, materials.engine_config
    kind, _, name = config.gold_scorer.partition(":")
    gold_head = name if kind == "reward" else ""
    heads = engine_config.heads
    if gold_head and Path(gold_head).is_dir():
        folder, gold_head = Path(gold_head), load_manifest(Path(gold_head)).name
        heads = heads if folder.resolve() in [h.resolve() for h in heads] else (*heads, folder)
    try:
        engine = Engine.from_config(replace(engine_config, heads=heads))
    except ModelError as error:
        raise UserError(str(error)) from error
    if gold_head:
        check_reward_head(engine, gold_head, "--gold")
    return engine, gold_head


def _steering(config: EvalConfig, engine: Engine, materials: Materials) -> dict[str, Heads]:
    """What steers each curve, by its name. Raises HeadError where heads are given and none can steer."""
    if config.steer:
        heads = tuple(parse_weights(config.steer).items())
        engine.bank.check(heads)
        return {config.steer: heads}
    given = [load_manifest(folder) for folder in materials.engine_config.heads]
    curves: dict[str, Heads] = {m.name: ((m.name, 1.0),) for m in given if m.parts.advantage is not None}
    if given and not curves:
        names = ", ".join(manifest.name for manifest in given)
        raise HeadError(f"the frontier needs a head with an advantage; {names} cannot steer: train one")
    return curves


def _bench(
    config: EvalConfig,
    engine: Engine,
    prompts: Sequence[Prompt],
    encoded: Sequence[tuple[int, ...]],
    gold_head: str,
) -> Bench:
    """Samples the plain replies and judges them."""
    bank = engine.bank
    measured = tuple(name for name, has in zip(bank.names, bank.has_reward, strict=True) if has)
    kind, _, proxy = config.proxy_scorer.partition(":")
    if kind == "reward":
        check_reward_head(engine, proxy, "--proxy")
    judges = make_judges(config, engine, prompts, measured, gold_head)
    sampling = SamplingParams(
        max_tokens=config.max_tokens, temperature=config.temperature, n=config.num_replies, seed=config.seed
    )
    sampler = Sampler(engine, tuple(prompts), tuple(encoded), sampling, measured)
    draws = resample_prompts(len(prompts), seed=config.seed)
    judging = Judging(len(prompts), draws, config.num_replies, config.seed)
    replies = sampler.sample("plain", num=max((config.num_replies, *config.best_of)))
    scores = judges(replies)
    plain = Plain(replies, scores, judge_point(replies, scores, 0.0, judging))
    return Bench(config, sampler, judges, replace(judging, plain=(replies, scores)), plain)


def _head_curve(bench: Bench, name: str, heads: Heads, materials: Materials) -> tuple[Curve, list[Example]]:
    strengths = bench.config.strengths or _strengths(bench, heads, materials)
    firsts = {0.0: _first_texts(bench.plain.replies)}
    points = [bench.plain.point]
    for strength in sorted(set(strengths) - {0.0}):
        replies = bench.sampler.sample(f"{name} at {strength:g}", heads=heads, strength=strength)
        points.append(bench.point(replies, strength))
        firsts[strength] = _first_texts(replies)
    points.sort(key=lambda point: point.knob)
    curve = Curve(name, "head", "strength", tuple(points), proxy=_proxy_of(bench, heads))
    return curve, _examples(bench, name, dict(sorted(firsts.items())))


def _strengths(bench: Bench, heads: Heads, materials: Materials) -> tuple[float, ...]:
    """Where the heads cost as many nats as curves are compared at, and somewhat less and more."""
    policy = materials.features.policy
    folders = {load_manifest(folder).name: folder for folder in materials.engine_config.heads}
    parts = []
    for name, weight in heads:
        head, manifest = load_head(folders[name], policy.identity, device=policy.device)
        if weight and head.advantage is not None and manifest.parts.advantage is not None:
            parts.append((head.advantage, weight * manifest.parts.advantage.scale))
    mean_kl = head_kl(parts, materials.features, bench.probed())
    return strengths_for(mean_kl, bench.kls, MAX_STRENGTH)


def _proxy_of(bench: Bench, heads: Heads) -> str | None:
    """The score that this curve pushes: the one asked for, or the steering head's own reward part."""
    kind, _, name = bench.config.proxy_scorer.partition(":")
    if kind:
        wanted = reward_name(name) if kind == "reward" else "proxy"
    else:
        wanted = reward_name(heads[0][0]) if len(heads) == 1 else ""
    return wanted if wanted in bench.plain.scores else None


def _bias(config: EvalConfig, engine: Engine, materials: Materials) -> Bias:
    """The constant to beat; empty where none is asked for."""
    if not config.static_bias:
        return {}
    if config.static_bias != FIT:
        return load_static_bias(Path(config.static_bias), engine.policy.vocab_size)
    assert config.rollouts is not None
    rows = load_rollouts(config.rollouts, config.on_bad_rows, config.extra_columns).rows
    encoder = ReplyEncoder(engine.policy.tokenizer)
    items = [
        RolloutItem(encoder.encode(r.prompt, r.completion, r.sampled), r.reward, r.token_rewards)
        for r in rows
        if r.strength == 0
    ]
    return fit_static_bias(items, discount=config.bias_discount, shrinkage=config.bias_shrinkage)


def _bias_curve(bench: Bench, bias: Bias, features: FeatureSource) -> Curve:
    config, points = bench.config, [bench.plain.point]
    strengths = config.bias_strengths or strengths_for(bias_kl(bias, features, bench.probed()), bench.kls)
    for strength in sorted(set(strengths)):
        tilt = scaled(bias, strength)
        replies = bench.sampler.sample(f"static bias at {strength:g}", bias=tilt)
        # The engine takes a logit bias for part of the base: the policy's own logits tell what it costs.
        costs = measure_static_bias(tilt, features, bench.sampler.encode(replies))
        measured = [
            replace(reply, kl=cost.kl, flips=cost.flips, base_logprob=cost.base_logprob)
            for reply, cost in zip(replies, costs, strict=True)
        ]
        points.append(bench.point(measured, strength))
    return Curve(STATIC_BIAS, "static_bias", "strength", tuple(points))


def _external_curve(bench: Bench, external: External) -> Curve:
    if not external.replies:
        return external.curve(external.points)
    tokenizer = bench.sampler.engine.policy.tokenizer
    points = [bench.plain.point]
    for knob, replies in external.replies:
        read = [
            replace(reply, token_ids=tuple(tokenizer(reply.text, add_special_tokens=False)["input_ids"]))
            for reply in replies
        ]
        points.append(bench.point(read, knob))
    return external.curve(points)


def _best_of_n_curves(bench: Bench) -> list[Curve]:
    """By the first gold score, and by each proxy."""
    config, plain = bench.config, bench.plain
    if not config.best_of:
        return []
    proxies = [name for name in plain.scores if name not in bench.judges.gold_names]
    counts = sorted(set(config.best_of))
    return [
        best_of_n(plain.replies, plain.scores, by, counts, bench.judging)
        for by in [*bench.judges.gold_names[:1], *proxies]
        if any(score is not None for score in plain.scores[by])
    ]


def _report(
    bench: Bench, curves: Sequence[Curve], examples: Sequence[Example], problems: Sequence[str]
) -> FrontierReport:
    gold = bench.judges.gold_names
    draws = bench.judging.draws
    baseline = next((curve.name for curve in curves if curve.kind == "static_bias"), None)
    compared = [
        found
        for score in gold
        for found in at_equal_kl(curves, score, bench.config.at_kl, draws, baseline=baseline)
    ]
    over = [
        find_overoptimisation(curve, score, draws)
        for score in gold
        for curve in curves
        if curve.proxy not in (None, *gold)
    ]
    return FrontierReport(
        num_prompts=bench.judging.num_prompts,
        gold=gold,
        curves=tuple(curves),
        at_kl=tuple(compared),
        baseline=baseline,
        overoptimisation=tuple(found for found in over if found is not None),
        examples=tuple(examples),
        problems=tuple(problems),
    )


def _first_texts(replies: Sequence[Reply]) -> dict[int, str]:
    return {reply.prompt: reply.text for reply in reversed(replies)}


def _examples(bench: Bench, curve: str, firsts: dict[float, dict[int, str]]) -> list[Example]:
    prompts = bench.sampler.prompts
    chosen = np.random.default_rng(bench.config.seed).permutation(len(prompts))[:NUM_EXAMPLES]
    return [
        Example(curve, _shown(prompts[i]), tuple(firsts), tuple(texts[i] for texts in firsts.values()))
        for i in map(int, chosen)
    ]


def _shown(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(message.content for message in prompt if message.role == "user")
