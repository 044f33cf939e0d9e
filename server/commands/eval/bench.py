"""Bench of an evaluation: sets up prompts, judges and plain replies, with which every curve is measured."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from trimtab.guidance.data.load import PromptRow, load_prompt_rows
from trimtab.guidance.errors import DataError, HeadError, UserError
from trimtab.guidance.evaluation.baselines.cost import costs_in_another_state
from trimtab.guidance.evaluation.curve import CurvePoint, Judging, Probe, judge_point
from trimtab.guidance.evaluation.replies import MeasuredReply, Scores
from trimtab.guidance.features.source import FeatureSource, StreamedFeatures
from trimtab.guidance.heads.forms import Head
from trimtab.guidance.heads.manifest import Manifest
from trimtab.guidance.heads.store import load_head
from trimtab.guidance.policy import Policy, load_policy
from trimtab.guidance.statistics import Estimate, resample_prompts
from trimtab.guidance.text.encoding import EncodedReply, ReplyEncoder, Sampled
from trimtab.guidance.text.message import Prompt
from trimtab.guidance.text.prompt_form import mismatches
from trimtab.server.commands.eval.config import EvalConfig
from trimtab.server.commands.eval.scores import Judges, make_judges
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.engine import Engine
from trimtab.server.rollouts.sample import EncodedPrompt, SamplePlan, sample_measured
from trimtab.server.scoring.choose import check_scorer

_PROBED_REPLIES = 64
FINAL_REPLIES = 4  # times as many where a bias's best few settings are tried at every price


@dataclass(frozen=True, slots=True)
class JudgedPrompts:
    """Prompts that fit the context, numbered by their rows in the file, and what scorers read of these
    beside. encoder: what encoded them. too_long: rows left out."""

    encoded: tuple[EncodedPrompt, ...]
    read: tuple[PromptRow, ...]
    encoder: ReplyEncoder
    too_long: tuple[int, ...] = ()

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        return tuple(one.prompt for one in self.encoded)

    @property
    def rows(self) -> tuple[int, ...]:
        return tuple(one.number for one in self.encoded)

    def encode(self, replies: Sequence[MeasuredReply]) -> list[EncodedReply]:
        """As they were drawn, each with the token that ends it."""
        return [
            self.encoder.encode(
                self.encoded[reply.prompt].prompt,
                reply.text,
                Sampled(reply.token_ids, is_cut=reply.finish_reason == "length"),
            )
            for reply in replies
        ]


def read_prompts(config: EvalConfig, engine: Engine, path: Path, limit: int | None = None) -> JudgedPrompts:
    """limit: of the rows, from the first. Raises DataError for prompts that do not fit, where those are
    refused."""
    columns = check_scorer(config.gold_scorer, "--gold").also(check_scorer(config.proxy_scorer, "--proxy"))
    policy = engine.policy
    encoder = ReplyEncoder(
        policy.tokenizer,
        config.row_options.rows,
        end_ids=policy.eos_token_ids,
        extra_keys=config.row_options.extra_columns,
    )
    loaded = load_prompt_rows(path, config.row_options, columns, as_text=encoder.form == "text").rows[:limit]
    fitting, too_long = _fitting(engine, [row.prompt for row in loaded], config.max_tokens, encoder)
    for line in [*encoder.notes.lines(), *mismatches(engine.bank.manifests, encoder.form)]:
        print(f"{path}: {line}")
    if too_long and config.row_options.on_bad_rows == "refuse":
        raise DataError(
            f"{path}: {len(too_long)} prompts and {config.max_tokens} tokens of reply do not fit "
            f"the context, first row {too_long[0]}: leave them out with --on-bad-rows skip"
        )
    read = tuple(loaded[prompt.number] for prompt in fitting)
    return JudgedPrompts(tuple(fitting), read, encoder, tuple(too_long))


def _fitting(
    engine: Engine, prompts: Sequence[Prompt], max_tokens: int, encoder: ReplyEncoder
) -> tuple[list[EncodedPrompt], list[int]]:
    """Prompts whose replies fit the context, and the numbers of those that do not."""
    limit, fitting, too_long = engine.info.max_model_len, [], []
    for number, prompt in enumerate(prompts):
        ids = encoder.prompt_ids(prompt)
        if len(ids) + max_tokens <= limit:
            fitting.append(EncodedPrompt(number, prompt, ids, encoder.end_id(prompt)))
        else:
            too_long.append(number)
    if not fitting:
        raise DataError(
            f"no prompt fits the context of {limit} with {max_tokens} tokens of reply: lower --max-tokens"
        )
    return fitting, too_long


@dataclass(frozen=True)
class Bench:
    """plan: how plain replies are drawn, num_replies to each prompt. replies, scores: plain ones, where every
    curve begins and what best-of-n chooses from; as many to each prompt as the largest n. own_kls: what a
    system prompt costs, at which the other curves are compared with it. bar: of all replies, in place of one
    for each curve's point."""

    config: EvalConfig
    engine: Engine
    judged: JudgedPrompts
    plan: SamplePlan
    judges: Judges
    judging: Judging
    features: FeatureSource
    replies: list[MeasuredReply]
    scores: Scores
    show_progress: bool = True
    bar: tqdm | None = None
    own_kls: tuple[float, ...] = ()

    def sample(
        self, label: str, prompts: Sequence[EncodedPrompt] | None = None, **changes: Any
    ) -> list[MeasuredReply]:
        """Replies in the order of the prompts. label: of the progress bar. prompts: as they are read in place
        of the judged ones. changes: of the plan."""
        plan, progress = replace(self.plan, **changes), self.bar or (label if self.show_progress else None)
        return sample_measured(self.engine, prompts or self.judged.encoded, plan, progress)

    def measured_in_another_state(
        self, replies: Sequence[MeasuredReply], states: Callable[[slice], Sequence[Tensor]]
    ) -> list[MeasuredReply]:
        """Replies that the engine sampled as plain ones, in other states: with what that costs, and with the
        rewards of heads as they are read behind the plain prompt. states: see costs_in_another_state."""
        bank, measured = self.engine.bank, []
        found = costs_in_another_state(self.features, self.judged.encode(replies), states)
        for reply, (cost, end) in zip(replies, found, strict=True):
            rewards = bank.rewards(end[None].to(self.features.policy.device))[0].tolist()
            by_name = dict(zip(bank.names, rewards, strict=True))
            measured.append(replace(cost.of(reply), rewards={name: by_name[name] for name in reply.rewards}))
        return measured

    def point(self, replies: Sequence[MeasuredReply], knob: float) -> CurvePoint:
        return judge_point(replies, self.judges(replies), knob, self.judging)

    @cached_property
    def plain(self) -> CurvePoint:
        """Of as many plain replies as every other point has, with the same random numbers."""
        num = self.plan.num_replies
        return self.plain_like({(r.prompt, r.sample) for r in self.replies if r.sample < num})

    def plain_like(self, places: Collection[tuple[int, int]]) -> CurvePoint:
        """Of the plain replies at these places, (prompt, sample) pairs."""
        chosen = [i for i, reply in enumerate(self.replies) if (reply.prompt, reply.sample) in places]
        scores = {name: [given[i] for i in chosen] for name, given in self.scores.items()}
        return judge_point([self.replies[i] for i in chosen], scores, 0.0, replace(self.judging, plain=None))

    @property
    def best_by(self) -> list[str]:
        """Scores that the best of several replies are chosen by: the first gold one, and each proxy."""
        proxies = [name for name in self.scores if name not in self.judges.gold_names]
        scored = [*self.judges.gold_names[:1], *proxies]
        return [name for name in scored if any(score is not None for score in self.scores[name])]

    @property
    def kls(self) -> tuple[float, ...]:
        """Costs in nats per reply that a curve goes through where no strengths are given."""
        kls = sorted({*self.config.at_kl, *self.own_kls})
        return (0.8 * kls[0], *kls[1:-1], 1.25 * kls[-1]) if kls else (1.0, 4.0)

    @cached_property
    def probe(self) -> Probe:
        """A few of the plain replies, along which is looked how strengths cost."""
        step = max(1, len(self.replies) // _PROBED_REPLIES)
        return Probe.along(self.features, self.judged.encode(self.replies[::step]))


def make_bench(
    config: EvalConfig,
    engine: Engine,
    features: FeatureSource,
    judged: JudgedPrompts,
    gold_head: str,
    *,
    num_plain: int,
    show_progress: bool = True,
    bar: tqdm | None = None,
) -> Bench:
    """Samples the plain replies, num_plain to each prompt, and judges them. gold_head: what gold scores are
    read from, or "". bar: see Bench."""
    bank = engine.bank
    measured = tuple(name for name, has in zip(bank.names, bank.has_reward, strict=True) if has)
    judges = make_judges(config, engine, judged.read, judged.encoder.form, measured, gold_head)
    plan = SamplePlan(
        num_replies=config.num_replies,
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        seed=config.seed,
        measured=measured,
    )
    num_prompts = len(judged.encoded)
    draws = resample_prompts(num_prompts, seed=config.seed)
    many = replace(plan, num_replies=max(num_plain, config.num_replies))
    progress = bar or ("plain" if show_progress else None)
    replies = sample_measured(engine, judged.encoded, many, progress)
    scores = judges(replies)
    judging = Judging(num_prompts, draws, config.num_replies, config.seed, (replies, scores))
    return Bench(config, engine, judged, plan, judges, judging, features, replies, scores, show_progress, bar)


@dataclass(frozen=True)
class Tuning:
    """Prompts of their own on which a baseline's setting is chosen, sampled when a choice is to be made.
    judged: which they may not be among."""

    config: EvalConfig
    engine: Engine
    features: FeatureSource
    judged: JudgedPrompts
    gold_head: str

    @cached_property
    def bench(self) -> Bench:
        """With num_plain plain replies. Raises UserError where prompts are judged, too."""
        config = self.config
        assert config.tuning_prompts is not None
        tuning = read_prompts(config, self.engine, config.tuning_prompts)
        pairs = zip(tuning.rows, tuning.prompts, strict=True)
        both = [row for row, prompt in pairs if prompt in self.judged.prompts]
        if both:
            raise UserError(
                f"{config.tuning_prompts}: {len(both)} prompts are among --prompts, first row {both[0]}: "
                "leave them out, since what is judged must not have chosen"
            )
        num = config.tuning_replies * (FINAL_REPLIES if config.has_bias_choice else 1)
        alone = replace(config, proxy="", num_replies=num)
        return make_bench(
            alone, self.engine, self.features, tuning, self.gold_head, num_plain=num, show_progress=False
        )


def gold_of(bench: Bench, point: CurvePoint) -> Estimate:
    """The first gold score of a point on tuning prompts. Raises DataError where none of them has one."""
    name = bench.judges.gold_names[0]
    estimate = point.scores[name].estimate
    if estimate is None:
        raise DataError(f"{bench.config.tuning_prompts}: no reply to the tuning prompts has a score {name}")
    return estimate


@dataclass(frozen=True)
class Materials:
    """What the sections read, loaded when first asked for. engine_config: with `bundled` resolved.
    loaded: the policy, where it is there already. bar: see Bench."""

    config: EvalConfig
    engine_config: EngineConfig
    loaded: Policy | None = None
    bar: tqdm | None = None

    @cached_property
    def policy(self) -> Policy:
        return self.loaded or load_policy(self.engine_config.model, device=self.engine_config.device)

    @cached_property
    def features(self) -> FeatureSource:
        return StreamedFeatures(self.policy)

    @cached_property
    def context(self) -> int | None:
        """Tokens of prompt and reply together; None where nothing says."""
        config = self.policy.model.config.get_text_config()
        return self.engine_config.max_model_len or getattr(config, "max_position_embeddings", None)

    def fits(self, reply: EncodedReply) -> bool:
        return self.context is None or reply.num_tokens <= self.context

    @cached_property
    def heads(self) -> list[tuple[Head, Manifest]]:
        """Raises HeadError where none is given."""
        if not self.engine_config.heads:
            raise HeadError("no head to judge: give --heads")
        policy = self.policy
        return [
            load_head(folder, policy.identity, device=policy.device) for folder in self.engine_config.heads
        ]
