"""`trimtab eval` at work: its sections one by one, then the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable

from trimtab.guidance.data.items import PairItem
from trimtab.guidance.data.load import load_preferences
from trimtab.guidance.errors import DataError
from trimtab.guidance.evaluation.page import write_report
from trimtab.guidance.evaluation.preferences import PreferenceReport, judge_preferences
from trimtab.guidance.evaluation.report import EvaluationReport, Subject
from trimtab.guidance.evaluation.sycophancy import SycophancyReport, judge_sycophancy, load_templates
from trimtab.guidance.evaluation.table import Table
from trimtab.guidance.evaluation.tables import all_tables
from trimtab.guidance.model_names import name_of
from trimtab.guidance.text.encoding import ReplyEncoder
from trimtab.guidance.text.prompt_form import form_of, mismatches
from trimtab.server.commands.eval.bench import Materials
from trimtab.server.commands.eval.config import FIT, PACKAGED, EvalConfig
from trimtab.server.commands.eval.steps import measure_steps
from trimtab.server.engine.config import EngineConfig

_OF_FIT = ("bias_discount", "bias_shrinkage", "bias_tokens")  # settings of `fit` alone
_MIN_WIDTH = 165  # of the tables; what is narrower breaks their numbers apart


def run(config: EvalConfig, engine_config: EngineConfig) -> None:
    """Judges, prints and writes. Raises UserError, HeadError, PolicyError, DataError, InvalidRequestError."""
    report, written = judge(Materials(config, engine_config))
    console = Console(width=max(Console().width, _MIN_WIDTH))
    for table in all_tables(report):
        console.print(as_rich(table))
    for problem in report.frontier.problems if report.frontier else ():
        print(f"left out: {problem}")
    print(f"written to {config.out}: {', '.join(path.name for path in written)}")


def judge(materials: Materials) -> tuple[EvaluationReport, list[Path]]:
    """The report, and the files that it was written to. Raises as run."""
    from trimtab.server.commands.eval.frontier import judge_frontier  # noqa: PLC0415 (loads an engine)

    config = materials.config
    report = EvaluationReport(_subject(config, materials.engine_config))
    if "preferences" in config.wanted:
        report = replace(report, preferences=_preferences(materials))
    if "frontier" in config.wanted:
        report = replace(report, frontier=judge_frontier(materials))
    if "sycophancy" in config.wanted:
        report = replace(report, sycophancy=_sycophancy(materials))
    if "steps" in config.wanted:
        report = replace(report, steps=measure_steps(materials))
    return report, write_report(report, config.out)


def as_rich(table: Table) -> RichTable:
    """For a terminal."""
    shown = RichTable(title=table.title, title_justify="left", caption=table.note or None)
    shown.caption_justify = "left"
    for name in table.columns:
        shown.add_column(name)
    for row in table.rows:
        shown.add_row(*row)
    return shown


def _subject(config: EvalConfig, engine_config: EngineConfig) -> Subject:
    shown: tuple[str, ...] = (
        *(
            "preferences",
            "prompts",
            "gold",
            "proxy",
            "strengths",
            "steer",
            "controllers",
            "rules",
            "group",
            "best_of",
            "static_bias",
        ),
        *("rollouts", "bias_discount", "bias_shrinkage", "bias_tokens", "system_prompts"),
        *("activation_steering", "steering_layers", "steering_coefficients"),
        *("tuning_prompts", "tuning_replies"),
        *(
            "bias_strengths",
            "baseline",
            "external",
            "at_kl",
            "sycophancy",
            "steps",
            "num_prompts",
            "num_replies",
        ),
        *("max_tokens", "temperature", "seed"),
    )
    if config.static_bias != FIT:
        shown = tuple(name for name in shown if name not in _OF_FIT)
    if config.tuning_prompts is None:
        shown = tuple(name for name in shown if name != "tuning_replies")
    values = {name: getattr(config, name) for name in shown} | {"gold": config.gold_scorer}
    settings = {name: _text(value) for name, value in values.items() if value not in ("", None, ())}
    heads = tuple(map(name_of, engine_config.heads))
    return Subject(engine_config.served_model_name or name_of(config.engine.model), heads, settings)


def _text(value: object) -> str:
    """Paths by their last part: a report names no machine's folders."""
    if isinstance(value, tuple):
        return ", ".join(map(_text, value))
    return name_of(value) if isinstance(value, Path) else str(value)


def _preferences(materials: Materials) -> PreferenceReport:
    config = materials.config
    assert config.preferences is not None
    policy, options = materials.policy, config.row_options
    form = form_of(policy.tokenizer, options.rows, [config.preferences])
    rows = load_preferences(config.preferences, options, as_text=form == "text").rows
    encoder = ReplyEncoder(policy.tokenizer, form, end_ids=policy.end_ids, extra_keys=options.extra_columns)
    pairs = [
        PairItem(
            encoder.encode(row.prompt, row.chosen, row.chosen_sampled),
            encoder.encode(row.prompt, row.rejected, row.rejected_sampled),
        )
        for row in rows
    ]
    for line in [*encoder.notes.lines(), *mismatches([m for _, m in materials.heads], form)]:
        print(f"{config.preferences}: {line}")
    fitting = _fitting(pairs, materials)
    return judge_preferences(fitting, materials.heads, materials.features, seed=config.seed)


def _fitting(pairs: Sequence[PairItem], materials: Materials) -> list[PairItem]:
    """Pairs within the context. Raises DataError for others where they are refused, or where none is left."""
    config, limit = materials.config, materials.context
    fitting = [pair for pair in pairs if all(map(materials.fits, pair.replies))]
    num_long = len(pairs) - len(fitting)
    if not fitting or (num_long and config.row_options.on_bad_rows == "refuse"):
        raise DataError(
            f"{config.preferences}: {num_long} of {len(pairs)} pairs are longer than the context of {limit}: "
            "leave them out with --on-bad-rows skip"
        )
    if num_long:
        print(f"left out: {num_long} pairs longer than the context of {limit}")
    return fitting


def _sycophancy(materials: Materials) -> SycophancyReport:
    config = materials.config
    templates = load_templates(None if config.sycophancy == PACKAGED else Path(config.sycophancy))
    return judge_sycophancy(templates, materials.heads, materials.features, seed=config.seed)
