"""Frontier of an evaluation: samples, judges and compares curves of heads and of what they must beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from trimtab.guidance.errors import HeadError, ModelError, UserError
from trimtab.guidance.evaluation.baselines.best_of_n import best_of_n
from trimtab.guidance.evaluation.baselines.external import External, load_external
from trimtab.guidance.evaluation.compare import at_equal_kl
from trimtab.guidance.evaluation.curve import Curve, strengths_for
from trimtab.guidance.evaluation.equal_cost import at_equal_cost
from trimtab.guidance.evaluation.overoptimisation import find_overoptimisation
from trimtab.guidance.evaluation.replies import Heads, MeasuredReply
from trimtab.guidance.evaluation.report import Example, FrontierReport
from trimtab.guidance.evaluation.seed_group import group_seeds
from trimtab.guidance.heads.manifest import load_manifest
from trimtab.guidance.heads.store import load_head
from trimtab.server.commands.eval.bench import (
    Bench,
    JudgedPrompts,
    Materials,
    Tuning,
    make_bench,
    read_prompts,
)
from trimtab.server.commands.eval.bias import STATIC_BIAS, bias_curve, find_bias
from trimtab.server.commands.eval.config import EvalConfig
from trimtab.server.commands.eval.replies_file import shown, write_replies
from trimtab.server.commands.eval.scores import PROXY, reward_name
from trimtab.server.commands.eval.steering import ACTIVATION_STEERING, find_steering, steering_curve
from trimtab.server.commands.eval.system_prompt import (
    SYSTEM_PROMPT,
    behind_wording,
    find_system_prompt,
    system_prompt_curve,
)
from trimtab.server.commands.eval.variants import (
    OtherPrompt,
    Variant,
    read_controlled,
    read_ruled,
    suited,
    variant_curves,
)
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.request import MAX_STRENGTH
from trimtab.server.flags import parse_weights
from trimtab.server.scoring.choose import with_reward_head

BEST_OF_N = "best-of-n by "
NUM_EXAMPLES = 3


def judge_frontier(materials: Materials) -> FrontierReport:
    """Raises UserError, HeadError, DataError or InvalidRequestError with one line."""
    config = materials.config
    assert config.prompts is not None
    engine, gold_head = _load_engine(materials)
    judged = read_prompts(config, engine, config.prompts, config.num_prompts)
    steering = _steering(config, engine, materials)
    groups = _groups(config, steering)
    numbers = {row: number for number, row in enumerate(judged.rows)}
    external = [load_external(path, numbers) for path in config.external]
    variants = [*map(read_controlled, config.controllers), *map(read_ruled, config.rules)]
    has_prompt = config.system_prompts is not None
    able = [suited(engine, steering, each, has_prompt=has_prompt) for each in variants]
    further = [each.name(name) for each, names in zip(variants, able, strict=True) for name in names]
    _check_names(config, steering, groups, [*further, *(one.name for one in external)])
    tuning = Tuning(config, engine, materials.features, judged, gold_head)
    bias = find_bias(config, engine, tuning)
    asked, activations = find_system_prompt(config, tuning), find_steering(config, tuning)
    samples = [r.sample + 1 for one in external for _, replies in one.replies for r in replies]
    num_plain = max((config.num_replies, *config.best_of, *samples))
    bench = make_bench(
        config, engine, materials.features, judged, gold_head, num_plain=num_plain, bar=materials.bar
    )
    point = None if asked is None else system_prompt_curve(bench, asked.wording)
    if point is not None:
        bench = replace(bench, own_kls=(point.points[0].kl.mean,))
    found = {name: _head_curve(bench, name, heads, materials) for name, heads in steering.items()}
    curves = _grouped(bench, {name: curve for name, (curve, _) in found.items()}, groups)
    other = None if asked is None else behind_wording(bench, asked.wording)
    for each, heads_by_name in zip(variants, able, strict=True):
        by_head = {
            name: _variant_curves(bench, name, heads, each, materials, other)
            for name, heads in heads_by_name.items()
        }
        curves += _grouped_variant(bench, by_head, groups)
    if bias is not None:
        curves.append(bias_curve(bench, bias.bias))
    if activations is not None:
        curves.append(steering_curve(bench, activations.steering))
    curves += [] if point is None else [point]
    curves += [_external_curve(bench, one) for one in external]
    curves += _best_of_n_curves(bench)
    if not curves:
        curves.append(Curve("policy", "head", "strength", (bench.plain,)))
    write_replies(bench, curves)
    examples = [example for _, shown in found.values() for example in shown]
    report = _report(bench, curves, examples, judged)
    return replace(
        report,
        bias_trials=() if bias is None else bias.trials,
        wordings=() if asked is None else asked.trials,
        steering_trials=() if activations is None else activations.trials,
    )


def _load_engine(materials: Materials) -> tuple[Engine, str]:
    """The engine, and the name of the head that gold scores are read from; "" for another judge."""
    config, engine_config = materials.config, materials.engine_config
    heads, gold_head = with_reward_head(config.gold_scorer, engine_config.heads, "--gold")
    heads, _ = with_reward_head(config.proxy_scorer, heads, "--proxy")
    engine_config = replace(engine_config, heads=heads)
    if config.activation_steering:  # hooks are run in no other way, and steered keys are no plain ones
        engine_config = replace(engine_config, cpu_backend="torch", cuda_graphs="off", prefix_caching=False)
    try:
        engine = Engine.from_config(engine_config, policy=materials.policy)
    except ModelError as error:
        raise UserError(str(error)) from error
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


def _groups(config: EvalConfig, steering: Mapping[str, Heads]) -> dict[str, tuple[str, ...]]:
    """The heads of each group by its name. Raises UserError for one that is not written as it must be."""
    groups: dict[str, tuple[str, ...]] = {}
    taken: set[str] = set()
    for text in config.group:
        name, _, members = text.partition("=")
        heads = tuple(head.strip() for head in members.split(",") if head.strip())
        if not name or len(set(heads)) < 2 or len(set(heads)) < len(heads):
            raise UserError(f"--group {text}: write NAME=HEAD,HEAD,… with two or more different heads")
        unknown = [head for head in heads if head not in steering]
        if unknown:
            raise UserError(
                f"--group {name}: {unknown[0]} is none of the heads that steer, {', '.join(steering)}"
            )
        if name in groups or taken & set(heads):
            raise UserError(
                f"--group {name}: every group needs its own name, and a head belongs to one group"
            )
        groups[name] = heads
        taken |= set(heads)
    return groups


def _check_names(
    config: EvalConfig,
    steering: Mapping[str, Heads],
    groups: Mapping[str, Sequence[str]],
    further: Sequence[str],
) -> None:
    """Raises UserError for two curves of one name, and for a baseline that there will not be. further: curves
    that are called so."""
    grouped = {head for heads in groups.values() for head in heads}
    names = [*(name for name in steering if name not in grouped), *groups, *further]
    names += [STATIC_BIAS] if config.static_bias else []
    names += [SYSTEM_PROMPT] if config.system_prompts else []
    names += [ACTIVATION_STEERING] if config.activation_steering else []
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(
            f"two curves are called {twice[0]}: give files of --external other labels, or groups other names"
        )
    if config.baseline and config.baseline not in names and not config.baseline.startswith(BEST_OF_N):
        raise UserError(f"--baseline {config.baseline} is none of the curves, {', '.join(names)}")


def _head_curve(bench: Bench, name: str, heads: Heads, materials: Materials) -> tuple[Curve, list[Example]]:
    strengths = bench.config.strengths or _strengths(bench, heads, materials)
    firsts = {0.0: _first_texts(bench.replies)}
    points = [bench.plain]
    for strength in sorted(set(strengths) - {0.0}):
        replies = bench.sample(f"{name} at {strength:g}", heads=heads, strength=strength)
        points.append(bench.point(replies, strength))
        firsts[strength] = _first_texts(replies)
    points.sort(key=lambda point: point.knob)
    curve = Curve(name, "head", "strength", tuple(points), proxy=_proxy_of(bench, heads))
    return curve, _examples(bench, name, dict(sorted(firsts.items())))


def _variant_curves(
    bench: Bench, name: str, heads: Heads, variant: Variant, materials: Materials, other: OtherPrompt | None
) -> list[Curve]:
    strengths: tuple[float, ...] = ()
    if variant.is_open:
        strengths = bench.config.strengths or _strengths(bench, heads, materials)
    proxy = _proxy_of(bench, heads) if heads else None
    return variant_curves(bench, name, heads, variant, sorted(set(strengths)), proxy, other)


def _strengths(bench: Bench, heads: Heads, materials: Materials) -> tuple[float, ...]:
    """Where the heads cost as many nats as curves are compared at, and somewhat less and more."""
    policy = materials.features.policy
    folders = {load_manifest(folder).name: folder for folder in materials.engine_config.heads}
    parts = []
    for name, weight in heads:
        head, manifest = load_head(folders[name], policy.identity, device=policy.device)
        if weight and head.advantage is not None and manifest.parts.advantage is not None:
            parts.append((head.advantage, weight * manifest.parts.advantage.scale))
    return strengths_for(bench.probe.head(parts), bench.kls, MAX_STRENGTH)


def _proxy_of(bench: Bench, heads: Heads) -> str | None:
    """The score that this curve pushes: the one asked for, or the steering head's own reward part."""
    asked = bench.config.proxy_scorer
    if asked:
        _, head = with_reward_head(asked, bench.engine.config.heads, "--proxy")
        wanted = reward_name(head) if head else PROXY
    else:
        wanted = reward_name(heads[0][0]) if len(heads) == 1 else ""
    return wanted if wanted in bench.scores else None


def _grouped(bench: Bench, curves: Mapping[str, Curve], groups: Mapping[str, Sequence[str]]) -> list[Curve]:
    """A group's curve stands where its first member would."""
    group_of = {head: name for name, heads in groups.items() for head in heads}
    names = dict.fromkeys(group_of.get(name, name) for name in curves)
    return [
        group_seeds(name, [curves[head] for head in groups[name]], bench.judging)
        if name in groups
        else curves[name]
        for name in names
    ]


def _grouped_variant(
    bench: Bench, by_head: Mapping[str, Sequence[Curve]], groups: Mapping[str, Sequence[str]]
) -> list[Curve]:
    """The same of a variant's curves, by the heads' names, where it suits all of a group's heads."""
    whole = {name: heads for name, heads in groups.items() if set(heads) <= by_head.keys()}
    found: list[Curve] = []
    for alike in zip(*by_head.values(), strict=True):
        curves = dict(zip(by_head, alike, strict=True))
        for curve in _grouped(bench, curves, whole):
            first = whole.get(curve.name, ("",))[0]
            said = curves[first].name.removeprefix(first) if first else ""
            found.append(replace(curve, name=curve.name + said))
    return found


def _external_curve(bench: Bench, external: External) -> Curve:
    """With the plain policy's replies of the same prompts and samples as where it begins."""
    if not external.replies:
        return external.curve(external.points)
    prompts, encoder = bench.judged.prompts, bench.judged.encoder
    places = {(reply.prompt, reply.sample) for _, replies in external.replies for reply in replies}
    points = [bench.plain_like(places)]
    for knob, replies in external.replies:
        read = [
            reply
            if reply.token_ids
            else replace(reply, token_ids=encoder.encode(prompts[reply.prompt], reply.text).reply_ids[:-1])
            for reply in replies
        ]
        points.append(bench.point(read, knob))
    return external.curve(points)


def _best_of_n_curves(bench: Bench) -> list[Curve]:
    """By the first gold score, and by each proxy."""
    counts = sorted(set(bench.config.best_of))
    if not counts:
        return []
    return [best_of_n(bench.replies, bench.scores, by, counts, bench.judging) for by in bench.best_by]


def _report(
    bench: Bench, curves: Sequence[Curve], examples: Sequence[Example], judged: JudgedPrompts
) -> FrontierReport:
    config, gold, judging = bench.config, bench.judges.gold_names, bench.judging
    bias = next((curve.name for curve in curves if curve.kind == "static_bias"), None)
    baseline = config.baseline or bias
    compared = at_equal_kl(curves, gold, sorted(set(config.at_kl)), judging, baseline=baseline)
    over = [
        find_overoptimisation(curve, score, judging.draws)
        for score in gold
        for curve in curves
        if curve.proxy not in (None, *gold)
    ]
    long = judged.too_long
    left_out = [f"{len(long)} prompts do not fit the context, first row {long[0]}"] if long else []
    return FrontierReport(
        num_prompts=judging.num_prompts,
        gold=gold,
        curves=tuple(curves),
        at_kl=compared.found,
        at_cost=at_equal_cost(curves, gold, judging),
        unreached=compared.unreached,
        num_comparisons=compared.num_comparisons,
        baseline=baseline,
        overoptimisation=tuple(found for found in over if found is not None),
        examples=tuple(examples),
        problems=(*left_out, *bench.judges.told()),
    )


def _first_texts(replies: Sequence[MeasuredReply]) -> dict[int, str]:
    return {reply.prompt: reply.text for reply in reversed(replies)}


def _examples(bench: Bench, curve: str, firsts: dict[float, dict[int, str]]) -> list[Example]:
    prompts = bench.judged.prompts
    chosen = np.random.default_rng(bench.config.seed).permutation(len(prompts))[:NUM_EXAMPLES]
    return [
        Example(curve, shown(prompts[i]), tuple(firsts), tuple(texts[i] for texts in firsts.values()))
        for i in map(int, chosen)
    ]
