"""Prompts of `trimtab fit`: those that are trained on, and others that the head is judged on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from trimtab.guidance.data.load import PromptRow, load_preferences, load_prompt_rows
from trimtab.guidance.data.rollouts import plain_prompt, read_rollouts
from trimtab.guidance.data.rows import Preference, ReadColumns
from trimtab.guidance.errors import DataError, UserError
from trimtab.guidance.files import write_text
from trimtab.guidance.text.message import Prompt
from trimtab.server.commands.fit.config import FitConfig
from trimtab.server.scoring.choose import check_scorer

MIN_TRAIN, MIN_EVAL = 20, 2
"""Different prompts. A tenth of those that are trained on are held out, and set the head's units."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """Rows that are trained on and judged on, with the columns that rewards read; no prompt is in both.

    pairs: those that are trained on, where there are any."""

    trained: tuple[PromptRow, ...]
    judged: tuple[PromptRow, ...]
    pairs: tuple[Preference, ...] = ()

    @classmethod
    def load(cls, config: FitConfig) -> Prompts:
        """Raises UserError where there are too few of either side, or some on both; DataError for files that
        cannot be read."""
        read = check_scorer(config.scorer, "--reward")
        read_by_all = read.also(check_scorer(config.gold, "--gold"))
        as_text = config.row_options.rows == "text"
        pairs: tuple[Preference, ...] = ()
        if config.preferences is not None:
            try:
                pairs = load_preferences(config.preferences, config.row_options, as_text=as_text).rows
            except DataError as error:  # which names the flags of `trimtab train`
                line = str(error).replace("so give it as --", "so give it to `trimtab train` as --")
                raise DataError(line) from error
        seen = {_key(pair.prompt) for pair in pairs}
        if config.eval_prompts is None:
            trained, judged = _split(_load(config, config.prompts, read_by_all), config.seed, seen)
        else:
            judged = _load(config, config.eval_prompts, read_by_all)
            trained = _load(config, config.prompts, read) if config.prompts else _of_rollouts(config)
        _check(config, trained, judged, seen)
        return cls(tuple(trained), tuple(judged), pairs)

    def keep(self, config: FitConfig, *, is_begun: bool) -> None:
        """Writes them into the run folder, as rows {prompt, …}. is_begun: by an earlier try, whose prompts
        must be these. Raises UserError."""
        for path, rows in ((trained_file(config), self.trained), (judged_file(config), self.judged)):
            text = "".join(f"{_line(row)}\n" for row in rows)
            if is_begun and path.is_file() and path.read_text("utf-8") != text:
                raise UserError(
                    f"{path} holds other prompts than those that are given now: give the same files again, "
                    "or name another --run-folder"
                )
            write_text(path, text)


def trained_file(config: FitConfig) -> Path:
    return config.run / "prompts.train.jsonl"


def judged_file(config: FitConfig) -> Path:
    return config.run / "prompts.eval.jsonl"


def _line(row: PromptRow) -> str:
    return json.dumps({**row.columns, "prompt": plain_prompt(row.prompt)}, default=str)


def _load(config: FitConfig, path: Path | None, read: ReadColumns) -> list[PromptRow]:
    assert path is not None
    options = config.row_options
    return list(load_prompt_rows(path, options, read, as_text=options.rows == "text").rows)


def _of_rollouts(config: FitConfig) -> list[PromptRow]:
    assert config.rollouts is not None
    rows, _ = read_rollouts(config.rollouts)
    return list({_key(row.prompt): PromptRow(row.prompt) for row in rows}.values())


def _split(
    rows: Sequence[PromptRow], seed: int, seen: Collection[str]
) -> tuple[list[PromptRow], list[PromptRow]]:
    """A tenth of the different prompts to judge on, by a hash of prompt and seed. seen: that cannot judge."""
    ranks = {_key(row.prompt): _rank(_key(row.prompt), seed) for row in rows}
    able = sorted((key for key in ranks if key not in seen), key=ranks.__getitem__)
    judged = set(able[: max(MIN_EVAL, len(ranks) // 10)])
    sides: tuple[list[PromptRow], list[PromptRow]] = ([], [])
    for row in rows:
        sides[_key(row.prompt) in judged].append(row)
    return sides


def _rank(key: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed} {key}".encode()).digest()


def _key(prompt: Prompt) -> str:
    """The same for a string and for one message of the user that says it."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and prompt[0].role == "user":
        return prompt[0].text
    return json.dumps(plain_prompt(prompt))


def _check(
    config: FitConfig, trained: Sequence[PromptRow], judged: Sequence[PromptRow], pairs: Collection[str]
) -> None:
    trained_keys, judged_keys = ({_key(row.prompt) for row in rows} for rows in (trained, judged))
    source, for_both = config.prompts or config.rollouts, config.eval_prompts is None
    if len(trained_keys) < MIN_TRAIN:
        num_given, needed = len(trained_keys) + len(judged_keys) * for_both, MIN_TRAIN + MIN_EVAL * for_both
        raise UserError(
            f"{source}: {num_given} different prompts are too few: give {needed} or "
            "more, and hundreds for a head that is worth something"
        )
    if len(judged_keys) < MIN_EVAL:
        given, fix = config.eval_prompts, f"give {MIN_EVAL} or more"
        if for_both:
            given, fix = source, "those of pairs cannot; give others, or --eval-prompts"
        raise UserError(f"{given}: {len(judged_keys)} prompts are too few to judge a head by: {fix}")
    both = judged_keys & (trained_keys | set(pairs))
    if both:
        raise UserError(
            f"{config.eval_prompts}: {len(both)} of its prompts are trained on too, such as "
            f"{sorted(both)[0][:60]!r}: leave them out"
        )
