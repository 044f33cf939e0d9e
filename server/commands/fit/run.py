"""Stages of `trimtab fit`: replies, features, scores, training and judging, each done unless its result is
there, by the functions that the single commands run."""

from __future__ import annotations

import gc
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from tqdm import tqdm

from trimtab.guidance.config_file import to_yaml
from trimtab.guidance.data.formats.registry import TRL
from trimtab.guidance.data.options import EncodedRows, RowLimits, columns_for, format_for
from trimtab.guidance.data.rollouts import read_rollouts
from trimtab.guidance.errors import DataError, UserError
from trimtab.guidance.features.layout import MANIFEST_FILE as FEATURES_FILE
from trimtab.guidance.features.layout import load_feature_manifest
from trimtab.guidance.features.store import open_features
from trimtab.guidance.files import write_text
from trimtab.guidance.heads.manifest import MANIFEST_FILE, load_manifest
from trimtab.guidance.policy import Policy, load_policy
from trimtab.guidance.publish.card import CardFacts, render_card
from trimtab.guidance.publish.judgement import read_judgement
from trimtab.guidance.publish.package import PICTURES_FOLDER, gather, write_package
from trimtab.guidance.text.encoding import ReplyEncoder
from trimtab.guidance.text.message import Prompt
from trimtab.guidance.training.config import PartName, TrainConfig
from trimtab.guidance.training.examples import MIN_ALIKE, held_out_prompts
from trimtab.guidance.training.train_head import train_head
from trimtab.server.commands.eval.bench import Materials
from trimtab.server.commands.eval.config import EvalConfig
from trimtab.server.commands.eval.run import judge
from trimtab.server.commands.features import run as features_run
from trimtab.server.commands.features.config import FeaturesConfig
from trimtab.server.commands.fit.check import check_room, is_complete, trained_head
from trimtab.server.commands.fit.config import FitConfig
from trimtab.server.commands.fit.inputs import check_files, is_reward_changed, keep_reward
from trimtab.server.commands.fit.plan import Amounts, measure_speed, plan_table
from trimtab.server.commands.fit.prompts import Prompts, judged_file, trained_file
from trimtab.server.commands.fit.rehearsal import TrainingSize, rehearse
from trimtab.server.commands.fit.show import final_table
from trimtab.server.commands.rollouts import run as rollouts_run
from trimtab.server.commands.rollouts.config import RolloutsConfig

CONFIG_FILE, SCORED_FILE = "fit.yaml", "scored.parquet"
SCORES = "scores of the replies"
HELD_OUT = 0.1
_LOTS = 3
"""How many times as many replies as run side by side are sampled before they are kept: between two lots the
engine runs empty."""
_FREE = {
    "head_folder",
    "run_folder",
    "judge",
    "engine.max_num_seqs",
    "engine.kv_cache_gib",
    "engine.cpu_backend",
}


def run(config: FitConfig) -> None:
    """Does what is left of the run, prints it, and writes the head's folder.

    Raises UserError, DataError, PolicyError, HeadError or InvalidRequestError with one line.
    """
    _check_same(config)
    prompts = Prompts.load(config)
    fit, is_begun = Fit(config, prompts), (config.run / CONFIG_FILE).is_file()
    if not is_begun:
        fit.check()
    prompts.keep(config, is_begun=is_begun)
    check_files(config)
    write_text(config.run / CONFIG_FILE, to_yaml(config))
    left = fit.left()
    if left:
        amounts = fit.amounts()
        check_room(config.run, amounts.num_bytes)
        print(plan_table(amounts, fit.speed(amounts), fit.training_seconds(amounts)), flush=True)
    for number, stage in enumerate(fit.stages, start=1):
        is_done = stage not in left
        print(f"stage {number}/{len(fit.stages)}: {stage.title}{': done' if is_done else ''}", flush=True)
        if not is_done:
            stage.work()
            if stage.title == SCORES:
                keep_reward(config)
            gc.collect()  # engines lie in circles, and hold a cache of keys and values each
    fit.package()
    print(final_table(config))
    if is_reward_changed(config):
        print(
            f"note: {config.reward} has changed since it scored the replies: another --run-folder scores anew"
        )
    print(f"head: {config.head} (its card is README.md); all else: {config.run}")
    print(f"serve it with: trimtab serve --model {config.engine.model} --heads {config.head}")


def _check_same(config: FitConfig) -> None:
    """Raises UserError that names what another run of this folder was told otherwise."""
    path = config.run / CONFIG_FILE
    if not path.is_file():
        return
    free = _FREE if (config.run / SCORED_FILE).is_file() else {*_FREE, "on_bad_scores"}
    before, now = (_flat(yaml.safe_load(text)) for text in (path.read_text("utf-8"), to_yaml(config)))
    changed = [
        name
        for name in {**before, **now}
        if before.get(name) != now.get(name) and not any(_is_within(name, each) for each in free)
    ]
    if changed:
        name = changed[0]
        raise UserError(
            f"{config.run} was begun with another {name} ({before.get(name)}, now {now.get(name)}): give "
            "that again, or name another --run-folder"
        )


def _is_within(name: str, field: str) -> bool:
    return name == field or name.startswith(f"{field}.")


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in data.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


@dataclass(frozen=True)
class Stage:
    """work: makes what is_done looks for, from where an earlier try was stopped."""

    title: str
    is_done: Callable[[], bool]
    work: Callable[[], object]


@dataclass(frozen=True)
class Fit:
    """One run. The policy is loaded once, when a stage first asks for it."""

    config: FitConfig
    prompts: Prompts

    @cached_property
    def policy(self) -> Policy:
        return load_policy(self.config.engine.model, device=self.config.engine.device)

    @cached_property
    def stages(self) -> list[Stage]:
        config = self.config
        stages = []
        if config.rollouts is None:
            stages.append(Stage("replies and their features", self.replies.is_file, self._sample))
        elif config.features is None:
            stages.append(_features("the replies", self.reply_features, self._read_replies))
        if config.preferences is None:
            stages.append(Stage(SCORES, self.scored.is_file, self._score))
        elif config.pair_features is None:
            stages.append(_features("the pairs", self.pair_features, self._read_pairs))
        stages.append(Stage("training", (trained_head(config) / MANIFEST_FILE).is_file, self._train))
        stages.append(Stage("judging", (self.report / "report.html").is_file, self._judge))
        return stages

    def left(self) -> list[Stage]:
        """Stages to do: from the first whose result is not there."""
        done = [stage.is_done() for stage in self.stages]
        return [] if all(done) else self.stages[done.index(False) :]

    @property
    def replies(self) -> Path:
        return self.config.rollouts or self.config.run / "rollouts.parquet"

    @property
    def reply_features(self) -> Path:
        return self.config.features or self.config.run / "features" / "rollouts"

    @property
    def pair_features(self) -> Path:
        return self.config.pair_features or self.config.run / "features" / "pairs"

    @property
    def scored(self) -> Path:
        return self.config.run / SCORED_FILE

    @property
    def report(self) -> Path:
        return self.config.run / "eval"

    @property
    def _own_rows(self) -> EncodedRows:
        """How the prompts are read that this run has written."""
        return replace(self.config.row_options, format=TRL, columns="")

    def check(self) -> None:
        """Raises UserError or DataError for prompts that cannot be replied to and for too few pairs, which
        training would refuse, before anything is begun."""
        config, policy, options = self.config, self.policy, self.config.row_options
        encoder = ReplyEncoder(
            policy.tokenizer, options.rows, end_ids=policy.end_ids, extra_keys=options.extra_columns
        )
        skips = options.on_bad_rows == "skip"

        def ids_of(prompts: Iterable[Prompt]) -> list[tuple[int, ...]]:
            found = []
            for prompt in prompts:
                try:
                    found.append(encoder.prompt_ids(prompt))
                except DataError as error:
                    if not skips:
                        raise DataError(f"prompt {_text(prompt)[:40]!r}: {error}") from error
            return found

        trained, judged, pairs = (
            ids_of(row.prompt for row in rows)
            for rows in (self.prompts.trained, self.prompts.judged, self.prompts.pairs)
        )
        context = getattr(policy.model.config.get_text_config(), "max_position_embeddings", None) or math.inf
        limit = min(context, config.engine.max_model_len or math.inf) - config.max_tokens
        asked = [*(trained if config.rollouts is None else ()), *judged]
        long = [ids for ids in asked if len(ids) > limit]
        if long and not skips:
            first = policy.tokenizer.decode(long[0][:16])
            raise UserError(
                f"{len(long)} of {len(asked)} prompts leave no room for {config.max_tokens} reply tokens, "
                f"the first ({first!r} …) has {len(long[0])}: mend them, lower --max-tokens, or give "
                "--on-bad-rows skip"
            )
        held_out = held_out_prompts([*pairs, *trained], HELD_OUT, config.seed)
        if pairs and not 0 < sum(prompt in held_out for prompt in pairs) < len(pairs):
            raise UserError(
                f"{config.preferences}: {len(pairs)} pairs of {len(set(pairs))} different prompts are too "
                "few: none would be left to train on, or to hold out; give more, of other prompts"
            )

    def amounts(self) -> Amounts:
        """Of the stages that are left."""
        config, left = self.config, {stage.title for stage in self.left()}
        pairs = self.prompts.pairs if "features of the pairs" in left else ()
        samples = "replies and their features" in left
        replies = _mean_tokens(self.policy, [f"{pair.chosen}{pair.rejected}" for pair in self.prompts.pairs])
        return Amounts(
            replies=len(self.prompts.trained) * config.num_replies * samples,
            max_tokens=config.max_tokens,
            pairs=len(pairs),
            prompt_tokens=_mean_tokens(self.policy, [_text(pair.prompt) for pair in pairs]),
            pair_tokens=replies,
            trained=self._training_size(replies) if "training" in left else None,
            judged=len(self.prompts.judged) * config.eval_replies * (1 + len(config.strengths)),
            hidden_size=self.policy.identity.hidden_size,
            itemsize=self.policy.lm_head.itemsize,
        )

    def _training_size(self, pair_tokens: float) -> TrainingSize:
        """Of replies that are there, as they are; of others at most."""
        num, tokens = len(self.prompts.trained) * self.config.num_replies, self.config.max_tokens
        if self.replies.is_file():
            rows, _ = read_rollouts(self.replies)
            num, tokens = len(rows), max(1, math.ceil(fmean(len(row.token_ids) for row in rows)))
        return TrainingSize(num, tokens, len(self.prompts.pairs), max(1, math.ceil(pair_tokens / 2)))

    def training_seconds(self, amounts: Amounts) -> float:
        """Measured on a few steps."""
        return rehearse(self._train_config(), self.policy, amounts.trained) if amounts.trained else 0.0

    def speed(self, amounts: Amounts) -> float:
        """Tokens a second, measured on a few replies."""
        prompts = [row.prompt for row in self.prompts.judged]
        return measure_speed(self.policy, self.config.engine, prompts, amounts, self.config.row_options.rows)

    def _sample(self) -> None:
        config = self.config
        asked = RolloutsConfig(
            prompts=trained_file(config),
            out=self.replies,
            num_replies=config.num_replies,
            max_tokens=config.max_tokens,
            seed=config.seed,
            keep_columns=True,
            prompts_per_part=max(1, _LOTS * config.engine.max_num_seqs // config.num_replies),
            keep_features=self.reply_features,
            row_options=self._own_rows,
        )
        print(rollouts_run.run(asked, config.engine, self.policy), end="")

    def _read_replies(self) -> None:
        self._read(self.reply_features, None, self.replies)

    def _read_pairs(self) -> None:
        self._read(self.pair_features, self.config.preferences, None)

    def _read(self, folder: Path, preferences: Path | None, rollouts: Path | None) -> None:
        trained = self._train_config()
        asked = FeaturesConfig(
            out=folder,
            preferences=preferences,
            rollouts=rollouts,
            resume=True,
            engine=replace(
                self.config.engine,
                max_num_seqs=64,
                max_num_batched_tokens=2048,
                cuda_graphs="off",
            ),
            row_options=RowLimits(**{f.name: getattr(trained, f.name) for f in fields(RowLimits)}),
        )
        features_run.run(asked, self.policy)

    def _score(self) -> None:
        config = self.config
        asked = RolloutsConfig(
            rescore=self.replies,
            out=self.scored,
            score=config.scorer,
            score_windows=config.score_windows,
            on_bad_scores=config.on_bad_scores,
            rubric=config.rubric,
            judge=config.judge,
        )
        print(rollouts_run.run(asked, config.engine, self.policy), end="")

    def _train_config(self) -> TrainConfig:
        config, options = self.config, self.config.row_options
        has_pairs = config.preferences is not None
        reward: tuple[PartName, ...] = ("reward",) if has_pairs else ()
        columns = columns_for(options.columns, "preferences")
        return TrainConfig(
            name=config.name,
            model=config.engine.model,
            head_folder=trained_head(config),
            run_folder=config.run / "train",
            parts=(*reward, "value", "advantage"),
            preferences=config.preferences,
            rollouts=self.replies if has_pairs else self.scored,
            reward_from="head" if has_pairs else "columns",
            trained_on=self._trained_on(),
            advantage=config.advantage,
            value=config.value,
            held_out=HELD_OUT,
            seed=config.seed,
            device=config.engine.device,
            resume=True,
            format=f"preferences:{format_for(options.format, 'preferences')}",
            columns=",".join(f"preferences:{ours}={theirs}" for ours, theirs in columns.items()),
            # Of rollouts bad ones are those that were left without a reward.
            on_bad_rows=options.on_bad_rows if has_pairs else "skip",
            extra_columns=options.extra_columns,
            rows=options.rows,
            max_tokens=config.max_row_tokens,
        )

    def _trained_on(self) -> str:
        config = self.config
        source = config.prompts or config.rollouts
        assert source is not None
        return f"replies of the policy to {source.name}, and {config.reward}"

    def _check_scores(self) -> None:
        """Raises UserError where a reward of whole replies gives the same to all: windows make of it numbers
        that differ from place to place."""
        rows, _ = read_rollouts(self.scored)
        if self.config.score_windows and len(rows) >= MIN_ALIKE and len({row.reward for row in rows}) == 1:
            raise UserError(
                f"{self.config.reward} gives all {len(rows)} replies the reward {rows[0].reward}, which "
                "teaches nothing: give a reward that tells replies apart"
            )

    def _train(self) -> None:
        if self.config.preferences is None:
            self._check_scores()
        features = open_features(self.reply_features, self.policy)
        if self.config.preferences is not None:
            features.take(open_features(self.pair_features, self.policy))
        train_head(self._train_config(), policy=self.policy, features=features)

    def _judge(self) -> None:
        config = self.config
        engine = replace(config.engine, heads=(trained_head(config),))
        asked = EvalConfig(
            out=self.report,
            prompts=judged_file(config),
            gold=config.gold or config.scorer,
            proxy=config.scorer if config.gold else "",
            strengths=config.strengths,
            best_of=(),
            at_kl=(),
            num_replies=config.eval_replies,
            max_tokens=config.max_tokens,
            seed=config.seed,
            rubric=config.rubric,
            on_bad_scores="skip",
            engine=engine,
            judge=config.judge,
            row_options=self._own_rows,
        )
        num_replies = len(self.prompts.judged) * config.eval_replies * (1 + len(config.strengths))
        with tqdm(total=num_replies, desc="judging", unit="reply") as bar:
            judge(Materials(asked, engine, self.policy, bar))

    def package(self) -> None:
        """The head with its card and pictures, in its folder."""
        config, head = self.config, trained_head(self.config)
        if config.rollouts is None:  # what a kill between two renames may have left
            shutil.rmtree(self.replies.with_suffix(".partial"), ignore_errors=True)
        if is_complete(config):
            return
        judgement = read_judgement(self.report, config.name)
        card = render_card(load_manifest(head), CardFacts(), judgement, PICTURES_FOLDER)
        pictures = [path for path, _ in judgement.pictures]
        write_package(config.head, lambda new: gather(head, new, card, pictures))


def _features(what: str, folder: Path, work: Callable[[], object]) -> Stage:
    return Stage(f"features of {what}", partial(_is_complete, folder), work)


def _is_complete(features: Path) -> bool:
    return (features / FEATURES_FILE).is_file() and load_feature_manifest(features).complete


def _text(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else "".join(message.text for message in prompt)


def _mean_tokens(policy: Policy, texts: Sequence[str]) -> float:
    """Of some of the texts."""
    some = texts[:: max(1, len(texts) // 32)]
    return sum(len(policy.tokenizer(text).input_ids) for text in some) / max(1, len(some))
