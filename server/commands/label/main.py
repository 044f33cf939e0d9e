"""`trimtab label`: preferences or rankings from a judge model that follows a written constitution."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.guidance.errors import UsageError, UserError
from trimtab.server.commands.label.config import LabelConfig
from trimtab.server.commands.log import show_log
from trimtab.server.flags import parse


def main(prog: str, args: Sequence[str]) -> None:
    """Asks, and writes what was answered. Raises UserError or DataError with one line."""
    config = parse(LabelConfig, prog, args)
    show_log()
    if config.out.suffix != ".parquet":
        raise UsageError(f"--out {config.out} must end in .parquet")
    from trimtab.server.commands.label.run import run  # noqa: PLC0415 (heavy; bad flags are told before)

    try:
        print(run(config), end="")
    except OSError as error:
        raise UserError(
            f"{config.out} or what stands beside it cannot be written ({error}): make room, or name another "
            "place, then run the same again; answers are kept"
        ) from error
