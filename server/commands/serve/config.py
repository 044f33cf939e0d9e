"""Options of `trimtab serve`, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from trimtab.server.api.access.config import AccessConfig
from trimtab.server.api.config import ToolCallParser
from trimtab.server.api.telemetry.config import LogFormat, TelemetryConfig
from trimtab.server.commands.model import ModelConfig
from trimtab.server.flags import NO_FLAG


@dataclass(frozen=True)
class ServeConfig(ModelConfig):
    """Serves a model with its heads over HTTP as OpenAI does: /v1/chat/completions, /v1/completions,
    /v1/models and /health. Requests steer with a `guidance` object: strength, heads and trace.

    host: address to listen on; 0.0.0.0 is every one.
    port: port to listen on; 0 takes a free one.
    drain: seconds that replies under way may go on for after SIGTERM or Ctrl-C, while new requests are
    answered 503; what then still runs ends with an error, as it does at once on a second signal.
    tool_call_parser: how the model writes calls of tools: hermes (Hermes, Qwen) or llama3_json (Llama 3);
    `auto` goes by the chat template.
    log_format: how log lines are written, of which each request has one: `text`, with what is known of it as
    name=value, or `json`, an object a line, for programs.
    log_prompts: log prompts and replies too, and the words of errors that may quote them; without it no line
    has any of them.
    otel_endpoint: URL of an OpenTelemetry collector that takes OTLP over HTTP, such as http://localhost:4318,
    for a trace of each request; needs the extra `otel`. OTEL_EXPORTER_OTLP_ENDPOINT says the same, and other
    variables OTEL_… what they mean elsewhere.
    tls_certificate: PEM file of a certificate, with its chain; the server then speaks HTTPS alone.
    tls_key: PEM file of the certificate's private key.
    access: keys, limits and hosts.
    profiles: guidance under names, which clients ask for as models; a file alone can say it.
    config: a YAML file of these options by their names, and of profiles. A flag counts more than a variable
    of the environment, such as TRIMTAB_MAX_MODEL_LEN, and that more than the file.
    print_config: show the options that hold, as such a file, and serve nothing.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    drain: float = 8.0
    tool_call_parser: ToolCallParser = "auto"
    log_format: LogFormat = "text"
    log_prompts: bool = False
    otel_endpoint: str | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    access: tyro.conf.OmitArgPrefixes[AccessConfig] = field(default_factory=AccessConfig)
    profiles: dict[str, Any] = field(default_factory=dict, metadata={NO_FLAG: True})
    config: Path | None = None
    print_config: tyro.conf.FlagCreatePairsOff[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise ValueError(f"port must be 0…65535, got {self.port}")
        if not 0 <= self.drain < math.inf:
            raise ValueError(f"drain must be 0 or more seconds, got {self.drain:g}")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together: give both, or neither")
        _ = self.telemetry  # which checks it

    @property
    def telemetry(self) -> TelemetryConfig:
        """What is told of requests, and how."""
        return TelemetryConfig(self.log_format, self.log_prompts, self.otel_endpoint)
