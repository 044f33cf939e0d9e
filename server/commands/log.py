"""Log records of a command, shown as plain lines on standard error."""

from __future__ import annotations

import logging

ROW_ACCOUNTS = "trimtab.guidance.data.load"  # tells how many rows were read, and which were left out


def show_log(of: str = ROW_ACCOUNTS, level: int = logging.INFO) -> None:
    """Shows warnings, and from `level` up what the logger `of` says."""
    logging.basicConfig(level=max(level, logging.WARNING), format="%(message)s")
    logging.getLogger(of).setLevel(level)
