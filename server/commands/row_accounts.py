"""The account of loaded rows, shown by every command that reads them."""

from __future__ import annotations

import logging


def show_accounts() -> None:
    """Warnings, and what `guidance.data` says of the rows, as plain lines on standard error."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("trimtab.guidance.data.load").setLevel(logging.INFO)
