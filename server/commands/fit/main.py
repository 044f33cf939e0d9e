"""`trimtab fit`: from a reward or preferences to a judged head, in one command that goes on where it was."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import replace

from trimtab.guidance.errors import UserError
from trimtab.server.commands.fit.config import WINDOW, FitConfig, advantage_for, settled
from trimtab.server.commands.log import show_log
from trimtab.server.flags import parse


def main(prog: str, args: Sequence[str]) -> None:
    """Does all stages that are left, and shows the head. Raises UserError and others with one line."""
    config = _parse(prog, args)
    show_log("trimtab", logging.INFO)
    from trimtab.server.commands.fit.check import check_before_work  # noqa: PLC0415 (heavy)

    check_before_work(config)
    from trimtab.server.commands.fit.run import run  # noqa: PLC0415 (heavy; bad flags are told before)

    try:
        run(config)
    except KeyboardInterrupt:
        print("\nstopped; give the same command again to go on", file=sys.stderr, flush=True)
        raise
    except OSError as error:
        raise UserError(
            f"{config.run} or {config.head} cannot be written ({error}): make room, or name another place, "
            "then run the same again; what is whole is kept"
        ) from error


def _parse(prog: str, args: Sequence[str]) -> FitConfig:
    """The defaults of --advantage depend on what the tokens are credited by."""
    reward, window = _read_flag("reward", args), _read_flag("window", args)
    if not reward:
        return parse(FitConfig, prog, args)
    from trimtab.server.commands.fit.check import credit_of  # noqa: PLC0415 (heavy; not for --help)

    size = int(window) if window.isdecimal() else WINDOW
    default = advantage_for(credit_of(reward, size), size)
    config = parse(FitConfig, prog, args, {"advantage": default})
    return replace(config, advantage=settled(config.advantage, default))


def _read_flag(name: str, args: Sequence[str]) -> str:
    """What a flag says among arguments that are not parsed yet, the last time that it stands there, or ""."""
    said = ""
    for arg, following in zip(args, [*args[1:], ""], strict=True):
        flag, has_value, value = arg.partition("=")
        if flag == f"--{name}":
            said = value if has_value else following
    return said
