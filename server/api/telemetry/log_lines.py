"""Log lines: writes records as text or JSON, each in a line that nothing in it can break or forge."""

from __future__ import annotations

import json
import logging
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

from trimtab.guidance.errors import printable
from trimtab.server.api.telemetry.account import current
from trimtab.server.api.telemetry.config import TelemetryConfig

_PLAIN = re.compile(r"[\w./:@+-]+", re.ASCII)


class _Lines(logging.Formatter):
    """Time, level, the id of the request that is being answered, and whatever `extra={"fields": …}` names.

    has_words: whether errors that come up while a request is answered tell their words, which may quote it.
    """

    def __init__(self, has_words: bool) -> None:
        super().__init__()
        self._has_words = has_words

    def format(self, record: logging.LogRecord) -> str:
        account = current.get()
        hides = not self._has_words and (account is not None or record.name == "asyncio")
        fields: dict[str, Any] = {} if account is None else {"request_id": account.request_id}
        fields |= getattr(record, "fields", {})
        message = record.getMessage().strip()
        if hides and record.name in ("asyncio", "py.warnings"):  # which quote errors and values from here on
            message = message.partition("\n")[0]
        error = record.exc_info[1] if record.exc_info else None
        trace = "" if error is None else _trace(error, hides)
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        return self.line(time.replace("+00:00", "Z"), record, fields, message, trace)

    def line(
        self, time: str, record: logging.LogRecord, fields: Mapping[str, Any], message: str, trace: str
    ) -> str:
        raise NotImplementedError


class TextLines(_Lines):
    """`TIME LEVEL name=value … LOGGER: message`, then an error's trace in lines that begin with a bar."""

    def line(
        self, time: str, record: logging.LogRecord, fields: Mapping[str, Any], message: str, trace: str
    ) -> str:
        named = "".join(f" {name}={_text_of(value)}" for name, value in fields.items())
        line = f"{time} {record.levelname}{named} {record.name}: {printable(message)}"
        return "\n".join([line, *(f"  | {printable(part)}" for part in trace.splitlines())])


class JsonLines(_Lines):
    """`{"time", "level", "logger", …, "message", "exception"}`."""

    def line(
        self, time: str, record: logging.LogRecord, fields: Mapping[str, Any], message: str, trace: str
    ) -> str:
        told = {"time": time, "level": record.levelname, "logger": record.name, **fields, "message": message}
        told |= {"exception": trace} if trace else {}
        halves_told = {name: _whole(v) if isinstance(v, str) else v for name, v in told.items()}
        return json.dumps(halves_told, default=str)


def _whole(text: str) -> str:
    """Without halves of surrogates, which are no JSON to some readers."""
    return text.encode(errors="backslashreplace").decode()


def _text_of(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if _PLAIN.fullmatch(text) else printable(json.dumps(text, ensure_ascii=False))


def _trace(error: BaseException, hides: bool) -> str:
    """Where it came up, and what it was; what it says, unless that is hidden."""
    told = traceback.TracebackException.from_exception(error)
    return "".join(_wordless(told) if hides else told.format())


def _wordless(told: traceback.TracebackException) -> Iterator[str]:
    cause = told.__cause__ or (None if told.__suppress_context__ else told.__context__)
    if cause is not None:
        yield from _wordless(cause)
        yield "from which came\n"
    yield from told.stack.format()
    kind = told.exc_type
    yield f"{kind.__module__}.{kind.__qualname__}\n" if kind else "an exception\n"


def set_up_log(config: TelemetryConfig, to: TextIO = sys.stderr) -> None:
    """Of this process: every logger's lines, uvicorn's and warnings among them, in this format."""
    handler = logging.StreamHandler(to)
    lines = JsonLines if config.log_format == "json" else TextLines
    handler.setFormatter(lines(config.log_prompts))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("trimtab").setLevel(logging.INFO)
    logging.raiseExceptions = False  # a record that cannot be written would be shown in a way of its own
    warnings.showwarning = _show_warning


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """One line; where a request is answered without what it says, which may quote it."""
    where = f"{category.__name__} at {filename}:{lineno}"
    logging.getLogger("py.warnings").warning("%s\n%s", where, message)
