"""Options of telemetry, with what holds where nothing is said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LogFormat = Literal["text", "json"]


@dataclass(frozen=True)
class TelemetryConfig:
    """What a server tells of its requests; the options of `trimtab serve` have these names.

    log_format: of log lines. log_prompts: whether these may hold prompts and replies. otel_endpoint: where
    traces go.
    """

    log_format: LogFormat = "text"
    log_prompts: bool = False
    otel_endpoint: str | None = None

    def __post_init__(self) -> None:
        if self.otel_endpoint is not None and not self.otel_endpoint.startswith(("http://", "https://")):
            raise ValueError(
                f"otel_endpoint must be a URL, such as http://localhost:4318, got {self.otel_endpoint!r}"
            )
