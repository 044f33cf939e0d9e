"""Options of telemetry, with what holds where nothing is said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LogFormat = Literal["text", "json"]


@dataclass(frozen=True)
class TelemetryConfig:
    """What a server tells of its requests.

    log_format: how log lines are written, of which each request has one: `text`, with what is known of it as
    name=value, or `json`, an object a line, for programs.
    log_prompts: log prompts and replies too, and the words of errors that may quote them; without it no line
    has any of them.
    otel_endpoint: URL of an OpenTelemetry collector that takes OTLP over HTTP, such as http://localhost:4318,
    for a trace of each request; needs the extra `otel`. OTEL_EXPORTER_OTLP_ENDPOINT says the same, and other
    variables OTEL_… what they mean elsewhere.
    """

    log_format: LogFormat = "text"
    log_prompts: bool = False
    otel_endpoint: str | None = None

    def __post_init__(self) -> None:
        if self.otel_endpoint is not None and not self.otel_endpoint.startswith(("http://", "https://")):
            raise ValueError(
                f"otel_endpoint must be a URL, such as http://localhost:4318, got {self.otel_endpoint!r}"
            )
