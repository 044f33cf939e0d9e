"""`trimtab rollouts`: replies sampled from a model, scored, and the training rows that they make."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

from trimtab.guidance.errors import UserError
from trimtab.server.commands.log import show_log
from trimtab.server.commands.model import resolve_engine
from trimtab.server.commands.rollouts.config import RolloutsConfig, read_rubric
from trimtab.server.flags import parse
from trimtab.server.scoring.choose import check_scorer, split_scorer


def main(prog: str, args: Sequence[str]) -> None:
    """Samples or reads, scores and writes. Raises UserError and others with one line."""
    config = parse(RolloutsConfig, prog, args)
    show_log()
    _check_before_work(config)
    from trimtab.server.commands.rollouts.run import run  # noqa: PLC0415 (heavy; bad flags are told before)

    try:
        print(run(config, resolve_engine(config.engine)), end="")
    except KeyboardInterrupt:
        print(f"\nstopped; {_kept(config)}", file=sys.stderr, flush=True)
        raise
    except OSError as error:
        raise UserError(
            f"{config.destination} or its parts cannot be written ({error}): make room, or name another "
            "place, then run the same again; what is whole is kept"
        ) from error


def _kept(config: RolloutsConfig) -> str:
    """What a run that was stopped has left, and how to go on."""
    parts, scores = (config.destination.with_suffix(suffix) for suffix in (".partial", ".scores.jsonl"))
    num_parts = len(list(parts.glob("part-*.parquet")))
    kept = [f"{num_parts} parts of the replies are kept in {parts}"] * (num_parts > 0)
    kept += [f"scores are kept in {scores}"] * scores.exists()
    return f"{' and '.join(kept)}: give the same command again to go on" if kept else "nothing was done yet"


def _check_before_work(config: RolloutsConfig) -> None:
    check_scorer(config.score)
    kind, name = split_scorer(config.score) if config.score else ("", "")
    if kind == "judge":
        asked = replace(config.judge, judge_url=name or config.judge.judge_url)
        asked.headers()
        assert asked.endpoint
    if config.rubric is not None:
        read_rubric(config.rubric)
    if config.rescore is None and config.destination.exists():
        raise UserError(f"{config.destination} exists: name another --out, or score it anew with --rescore")
