"""The bench of an evaluation: prompts, judges and plain replies, with which every curve is measured."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from trimtab.guidance.data.load import PromptRow, load_prompt_rows
from trimtab.guidance.errors import DataError, HeadError
from trimtab.guidance.evaluation.curve import CurvePoint, Judging, Probe, judge_point
from trimtab.guidance.evaluation.replies import Reply, Scores
from trimtab.guidance.features.source import FeatureSource, StreamedFeatures
from trimtab.guidance.heads.forms import Head
from trimtab.guidance.heads.manifest import Manifest
from trimtab.guidance.heads.store import load_head
from trimtab.guidance.policy import Policy, load_policy
from trimtab.guidance.statistics import resample_prompts
from trimtab.guidance.text.encoding import ReplyEncoder
from trimtab.guidance.text.message import Prompt
from trimtab.guidance.text.prompt_form import mismatches
from trimtab.server.commands.eval.config import EvalConfig
from trimtab.server.commands.eval.scores import Judges, make_judges
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.request import SamplingParams
from trimtab.server.rollouts.evaluation import Sampler, fitting_prompts
from trimtab.server.scoring.choose import check_scorer

_PROBED_REPLIES = 64


@dataclass(frozen=True, slots=True)
class JudgedPrompts:
    """Prompts that fit the context, with their tokens, their rows in the file, and what scorers read of these
    beside. encoder: what encoded them. too_long: rows left out."""

    prompts: tuple[Prompt, ...]
    encoded: tuple[tuple[int, ...], ...]
    rows: tuple[int, ...]
    read: tuple[PromptRow, ...]
    encoder: ReplyEncoder
    too_long: tuple[int, ...] = ()


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
    fitting, too_long = fitting_prompts(engine, [row.prompt for row in loaded], config.max_tokens, encoder)
    for line in [*encoder.notes.lines(), *mismatches(engine.bank.manifests, encoder.form)]:
        print(f"{path}: {line}")
    if too_long and config.row_options.on_bad_rows == "refuse":
        raise DataError(
            f"{path}: {len(too_long)} prompts and {config.max_tokens} tokens of reply do not fit "
            f"the context, first row {too_long[0]}: leave them out with --on-bad-rows skip"
        )
    rows = tuple(sorted(set(range(len(loaded))) - set(too_long)))
    kept, encoded = zip(*fitting, strict=True)
    return JudgedPrompts(kept, encoded, rows, tuple(loaded[row] for row in rows), encoder, tuple(too_long))


@dataclass(frozen=True)
class Bench:
    """replies, scores: plain ones, where every curve begins and what best-of-n chooses from; as many to each
    prompt as the largest n."""

    config: EvalConfig
    sampler: Sampler
    judges: Judges
    judging: Judging
    features: FeatureSource
    replies: list[Reply]
    scores: Scores

    def point(self, replies: Sequence[Reply], knob: float) -> CurvePoint:
        return judge_point(replies, self.judges(replies), knob, self.judging)

    @cached_property
    def plain(self) -> CurvePoint:
        """Of as many plain replies as every other point has, with the same random numbers."""
        num = self.sampler.num_replies
        return self.plain_like({(r.prompt, r.sample) for r in self.replies if r.sample < num})

    def plain_like(self, places: Collection[tuple[int, int]]) -> CurvePoint:
        """Of the plain replies at these places, (prompt, sample) pairs."""
        chosen = [i for i, reply in enumerate(self.replies) if (reply.prompt, reply.sample) in places]
        scores = {name: [given[i] for i in chosen] for name, given in self.scores.items()}
        return judge_point([self.replies[i] for i in chosen], scores, 0.0, replace(self.judging, plain=None))

    @property
    def kls(self) -> tuple[float, ...]:
        """Costs in nats per reply that a curve goes through where no strengths are given."""
        kls = sorted(set(self.config.at_kl))
        return (0.8 * kls[0], *kls[1:-1], 1.25 * kls[-1]) if kls else (1.0, 4.0)

    @cached_property
    def probe(self) -> Probe:
        """A few of the plain replies, along which is looked how strengths cost."""
        step = max(1, len(self.replies) // _PROBED_REPLIES)
        return Probe.along(self.features, self.sampler.encode(self.replies[::step]))


def make_bench(
    config: EvalConfig,
    engine: Engine,
    features: FeatureSource,
    judged: JudgedPrompts,
    gold_head: str,
    *,
    num_plain: int,
    show_progress: bool = True,
) -> Bench:
    """Samples the plain replies, num_plain to each prompt, and judges them. gold_head: what gold scores are
    read from, or ""."""
    bank = engine.bank
    measured = tuple(name for name, has in zip(bank.names, bank.has_reward, strict=True) if has)
    judges = make_judges(config, engine, judged.read, judged.encoder.form, measured, gold_head)
    sampling = SamplingParams(
        max_tokens=config.max_tokens, temperature=config.temperature, n=config.num_replies, seed=config.seed
    )
    sampler = Sampler(
        engine,
        judged.prompts,
        judged.encoded,
        sampling,
        measured,
        judged.encoder,
        judged.rows,
        show_progress=show_progress,
    )
    num_prompts = len(judged.prompts)
    draws = resample_prompts(num_prompts, seed=config.seed)
    replies = sampler.sample("plain", num=max(num_plain, config.num_replies))
    scores = judges(replies)
    judging = Judging(num_prompts, draws, config.num_replies, config.seed, (replies, scores))
    return Bench(config, sampler, judges, judging, features, replies, scores)


@dataclass(frozen=True)
class Materials:
    """What the sections read, loaded when first asked for. engine_config: with `bundled` resolved."""

    config: EvalConfig
    engine_config: EngineConfig

    @cached_property
    def policy(self) -> Policy:
        return load_policy(self.engine_config.model, device=self.engine_config.device)

    @cached_property
    def features(self) -> FeatureSource:
        return StreamedFeatures(self.policy)

    @cached_property
    def heads(self) -> list[tuple[Head, Manifest]]:
        """Raises HeadError where none is given."""
        if not self.engine_config.heads:
            raise HeadError("no head to judge: give --heads")
        policy = self.policy
        return [
            load_head(folder, policy.identity, device=policy.device) for folder in self.engine_config.heads
        ]
