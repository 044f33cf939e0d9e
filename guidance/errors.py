"""Errors that users meet: each says in one line what is wrong and how to mend it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class HeadError(ValueError):
    """A head that cannot be read, does not fit the policy, or cannot do what is asked of it."""


class PolicyError(ValueError):
    """A policy that cannot be loaded, or whose logits this code would compute wrongly."""


class DataError(ValueError):
    """Data rows that cannot be read as asked."""


class ChatTemplateError(DataError):
    """A chat template that refuses a conversation, or fails at it; the message holds the template's words."""


class TieError(DataError):
    """A row that prefers none of its replies: right as it is, but nothing to learn a preference from."""


class MixedError(ValueError):
    """Rows of several formats in one file: none of them is bad by itself."""


class SettingError(ValueError):
    """A setting that cannot be meant, or done. key: as requests name it. problem: what is wrong, and the
    fix."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}: {problem}")
        self.key, self.problem = key, problem


class RuleError(SettingError):
    """An option of a rule."""


class ControllerError(SettingError):
    """A controller that is asked for what it, or the loaded heads, cannot do."""


class UserError(Exception):
    """One line that names the thing and the fix."""


class EngineDiedError(UserError):
    """The engine of a server has died, and the server with it."""


class UsageError(UserError):
    """A command line that describes no valid configuration."""


class ModelError(Exception):
    """A model that cannot be loaded or served right. One line: what it is, and what to do."""


class ConfigError(ValueError):
    """Defaults that the loaded heads cannot honour. One line: what it is, and what to do."""


TOLD = (UserError, ConfigError, DataError, HeadError, ModelError, PolicyError)
"""Those that a command tells in a line where it ends; any other is a fault of ours, with its traceback."""


@contextmanager
def told_in_one_line(name: str) -> Iterator[None]:
    """Ends the process with status 1, or 2 for a command line, and the error's line. name: who tells it."""
    try:
        yield
    except TOLD as error:
        print(f"{name}: {error}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, UsageError) else 1) from None


def first_line(error: BaseException) -> str:
    """Of another's message; its type's name where there is none."""
    return printable((str(error).strip() or type(error).__name__).splitlines()[0])


def printable(text: str) -> str:
    """The text in one line: whatever cannot be seen, or would be obeyed by what shows it (line ends, control
    and bidirectional characters, halves of surrogates), as its escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
