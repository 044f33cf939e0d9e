"""`trimtab eval`: what heads are worth, judged by scores that they were not trained on."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.guidance.errors import UserError
from trimtab.server.commands.eval.config import EvalConfig
from trimtab.server.commands.log import show_log
from trimtab.server.commands.model import resolve_engine
from trimtab.server.flags import parse
from trimtab.server.scoring.choose import check_scorer


def main(prog: str, args: Sequence[str]) -> None:
    """Judges, prints the tables and writes the report."""
    config = parse(EvalConfig, prog, args)
    show_log()
    for flag, scorer in (("--gold", config.gold_scorer), ("--proxy", config.proxy_scorer)):
        check_scorer(scorer, flag)
    from trimtab.server.commands.eval.run import run  # noqa: PLC0415 (heavy; bad flags are told before)

    try:
        run(config, resolve_engine(config.engine))
    except OSError as error:
        raise UserError(
            f"{config.out} cannot be written ({error}): make room or name another --out"
        ) from error
