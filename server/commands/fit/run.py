"""Stages of `trimtab fit`: replies, features, scores, training and judging, each done unless its result is
there, by the functions that the single commands run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import yaml

from trimtab.guidance.config_file import to_yaml
from trimtab.guidance.data.formats.registry import TRL
from trimtab.guidance.data.load import PromptRow, load_preferences, load_prompt_rows
from trimtab.guidance.data.options import EncodedRows, RowLimits, columns_for, format_for
from trimtab.guidance.data.rollouts import plain_prompt, read_rollouts
from trimtab.guidance.data.rows import ReadColumns
from trimtab.guidance.errors import UserError
from trimtab.guidance.features.layout import MANIFEST_FILE as FEATURES_FILE
from trimtab.guidance.features.layout import load_feature_manifest
from trimtab.guidance.features.store import open_features
from trimtab.guidance.files import write_text
from trimtab.guidance.heads.manifest import MANIFEST_FILE, load_manifest
from trimtab.guidance.policy import Policy, load_policy
from trimtab.guidance.publish.card import CardFacts, render_card
from trimtab.guidance.publish.judgement import read_judgement
from trimtab.guidance.publish.package import PICTURES_FOLDER, gather, write_package
from trimtab.guidance.training.config import PartName, TrainConfig
from trimtab.guidance.training.train_head import train_head
from trimtab.server.commands.eval.bench import Materials
from trimtab.server.commands.eval.config import EvalConfig
from trimtab.server.commands.eval.run import judge
from trimtab.server.commands.features import run as features_run
from trimtab.server.commands.features.config import FeaturesConfig
from trimtab.server.commands.fit.check import check_room, is_complete, trained_head
from trimtab.server.commands.fit.config import FitConfig
from trimtab.server.commands.fit.plan import Amounts, measure_speed, plan_table
from trimtab.server.commands.fit.show import final_table
from trimtab.server.commands.model import find_model
from trimtab.server.commands.rollouts import run as rollouts_run
from trimtab.server.commands.rollouts.config import RolloutsConfig
from trimtab.server.scoring.choose import check_scorer

CONFIG_FILE = "fit.yaml"
MIN_TRAIN, MIN_EVAL = 20, 2  # different prompts: a tenth of those are held out, and set the head's units
HELD_OUT = 0.1
_FREE = {"head_folder", "run_folder", "judge", "engine.max_num_seqs", "engine.kv_cache_gib", "engine.compile"}


def run(config: FitConfig) -> None:
    """Does what is left of the run, prints it, and writes the head's folder.

    Raises UserError, DataError, PolicyError, HeadError or InvalidRequestError with one line.
    """
    config = replace(config, engine=replace(config.engine, model=find_model(config.engine.model)))
    _check_same(config)
    fit = Fit(config)
    fit.write_prompts()
    write_text(config.run / CONFIG_FILE, to_yaml(config))
    left = fit.left()
    if left:
        amounts = fit.amounts()
        check_room(config.run, amounts.num_bytes)
        print(plan_table(amounts, fit.speed(amounts)), flush=True)
    for number, stage in enumerate(fit.stages, start=1):
        is_done = stage not in left
        print(f"stage {number}/{len(fit.stages)}: {stage.title}{': done' if is_done else ''}", flush=True)
        if not is_done:
            stage.work()
    fit.package()
    print(final_table(config))
    print(f"head: {config.head} (its card is README.md); all else: {config.run}")
    print(f"serve it with: trimtab serve --model {config.engine.model} --heads {config.head}")


def _check_same(config: FitConfig) -> None:
    """Raises UserError that names what another run of this folder was told otherwise."""
    path = config.run / CONFIG_FILE
    if not path.is_file():
        return
    before, now = (_flat(yaml.safe_load(text)) for text in (path.read_text("utf-8"), to_yaml(config)))
    changed = [
        name
        for name in {**before, **now}
        if before.get(name) != now.get(name) and not any(_is_within(name, free) for free in _FREE)
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
        if config.preferences is not None:
            stages.append(_features("the pairs", self.pair_features, self._read_pairs))
        else:
            stages.append(Stage("scores of the replies", self.scored.is_file, self._score))
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
        return self.config.run / "features" / "pairs"

    @property
    def scored(self) -> Path:
        return self.config.run / "scored.parquet"

    @property
    def report(self) -> Path:
        return self.config.run / "eval"

    def prompts(self, side: str) -> Path:
        """side: train or eval."""
        return self.config.run / f"prompts.{side}.jsonl"

    # Prompts

    def write_prompts(self) -> None:
        """The prompts of either side as the stages read them. Raises UserError where they are too few, the
        same on both sides, or others than those of the run that is gone on with."""
        config = self.config
        asked = check_scorer(config.scorer, "--reward")
        judged_by = asked.also(check_scorer(config.gold, "--gold"))
        if config.rollouts is not None:
            assert config.eval_prompts is not None
            trained = [PromptRow(row.prompt) for row in read_rollouts(config.rollouts)[0]]
            judged = self._load(config.eval_prompts, judged_by)
        else:
            assert config.prompts is not None
            if config.eval_prompts is not None:
                trained = self._load(config.prompts, asked)
                judged = self._load(config.eval_prompts, judged_by)
            else:
                trained, judged = _split(self._load(config.prompts, judged_by), config.seed)
        _check_prompts(config, trained, judged)
        if config.rollouts is None:
            self._keep_prompts("train", trained)
        self._keep_prompts("eval", judged)

    def _load(self, path: Path, read: ReadColumns) -> list[PromptRow]:
        options = self.config.row_options
        return list(load_prompt_rows(path, options, read, as_text=options.rows == "text").rows)

    def _keep_prompts(self, side: str, rows: Sequence[PromptRow]) -> None:
        path = self.prompts(side)
        lines = [json.dumps({**row.columns, "prompt": plain_prompt(row.prompt)}, default=str) for row in rows]
        text = "".join(f"{line}\n" for line in lines)
        if path.is_file() and path.read_text("utf-8") != text:
            raise UserError(
                f"{self.config.run} was begun with other prompts to {side} on: give the same file again, or "
                "name another --run-folder"
            )
        write_text(path, text)

    @property
    def _own_rows(self) -> EncodedRows:
        """How the prompts are read that this run has written."""
        return replace(self.config.row_options, format=TRL, columns="")

    # What it will take

    def amounts(self) -> Amounts:
        """At most, of the stages that are left."""
        config, left = self.config, {stage.title for stage in self.left()}
        num_prompts, num_judged = (
            len(path.read_text("utf-8").splitlines()) if path.is_file() else 0
            for path in (self.prompts("train"), self.prompts("eval"))
        )
        is_sampling = "replies and their features" in left
        pairs = load_preferences(config.preferences, config.row_options).rows if config.preferences else ()
        return Amounts(
            replies=num_prompts * config.num_replies * is_sampling,
            max_tokens=config.max_tokens,
            pairs=len(pairs) * ("features of the pairs" in left),
            pair_tokens=_mean_tokens(self.policy, [f"{p.chosen}{p.rejected}" for p in pairs]),
            judged=num_judged * config.eval_replies * (1 + len(config.strengths)),
            hidden_size=self.policy.identity.hidden_size,
            itemsize=self.policy.lm_head.itemsize,
        )

    def speed(self, amounts: Amounts) -> float:
        """Tokens a second, measured on a few replies."""
        rows = self._load(self.prompts("eval"), ReadColumns(takes_all=True))
        return measure_speed(self.policy, self.config.engine, [row.prompt for row in rows], amounts)

    # Stages

    def _sample(self) -> None:
        config = self.config
        asked = RolloutsConfig(
            prompts=self.prompts("train"),
            out=self.replies,
            num_replies=config.num_replies,
            max_tokens=config.max_tokens,
            seed=config.seed,
            keep_columns=True,
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
                compile="off",
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
            on_bad_rows=options.on_bad_rows,
            extra_columns=options.extra_columns,
            rows=options.rows,
            max_tokens=config.max_row_tokens,
        )

    def _trained_on(self) -> str:
        config = self.config
        source = config.prompts or config.rollouts
        assert source is not None
        return f"replies of the policy to {source.name}, and {config.reward}"

    def _train(self) -> None:
        features = open_features(self.reply_features, self.policy)
        if self.config.preferences is not None:
            features.take(open_features(self.pair_features, self.policy))
        train_head(self._train_config(), policy=self.policy, features=features)

    def _judge(self) -> None:
        config = self.config
        engine = replace(config.engine, heads=(trained_head(config),))
        asked = EvalConfig(
            out=self.report,
            prompts=self.prompts("eval"),
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
        judge(Materials(asked, engine, self.policy))

    def package(self) -> None:
        """The head with its card and pictures, in its folder."""
        config, head = self.config, trained_head(self.config)
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


def _split(rows: Iterable[PromptRow], seed: int) -> tuple[list[PromptRow], list[PromptRow]]:
    """A tenth of the different prompts to judge on, by a hash of prompt and seed."""
    rows = list(rows)
    ranks = {_text(row): hashlib.sha256(f"{seed} {_text(row)}".encode()).digest() for row in rows}
    judged = set(sorted(ranks, key=ranks.__getitem__)[: max(MIN_EVAL, len(ranks) // 10)])
    return [row for row in rows if _text(row) not in judged], [row for row in rows if _text(row) in judged]


def _text(row: PromptRow) -> str:
    return json.dumps(plain_prompt(row.prompt))


def _check_prompts(config: FitConfig, trained: Sequence[PromptRow], judged: Sequence[PromptRow]) -> None:
    num_trained, num_judged = (len(set(map(_text, rows))) for rows in (trained, judged))
    if num_trained < MIN_TRAIN:
        need = f"{MIN_TRAIN} or more" if config.eval_prompts else f"{MIN_TRAIN + MIN_EVAL} or more"
        raise UserError(
            f"{config.prompts or config.rollouts}: {num_trained} different prompts are left to train on; "
            f"give {need}, and hundreds for a head that is worth something"
        )
    if num_judged < MIN_EVAL:
        raise UserError(f"{config.eval_prompts}: one prompt judges nothing; give {MIN_EVAL} or more")
    both = set(map(_text, trained)) & set(map(_text, judged))
    if both:
        raise UserError(
            f"{config.eval_prompts}: {len(both)} of its prompts are trained on too, such as "
            f"{sorted(both)[0][:60]}: leave them out of one"
        )


def _mean_tokens(policy: Policy, texts: Sequence[str]) -> float:
    """Of some of the texts."""
    some = texts[:: max(1, len(texts) // 32)]
    return sum(len(policy.tokenizer(text).input_ids) for text in some) / max(1, len(some))
