"""What the command line tells a user in one line, without a traceback."""

from __future__ import annotations


class UserError(Exception):
    """One line that names the thing and the fix."""


class EngineDiedError(UserError):
    """The engine of a server has died, and the server with it."""


class UsageError(UserError):
    """A command line that describes no valid configuration."""
