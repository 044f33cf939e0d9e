"""Options of access, with what holds where nothing is said."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class AccessConfig:
    """Keys, limits and hosts of a server.

    api_keys: file of keys, one a line, as KEY or NAME:KEY; names stand in logs. Beside it, or without it,
    the keys in the environment variable TRIMTAB_API_KEYS, separated by commas. Without any, nobody is asked
    for one.
    admin_keys: file of keys that may load and unload heads while the server runs, like api_keys, and the
    environment's TRIMTAB_ADMIN_KEYS. They open nothing else.
    heads_dir: folder below which the folders of such heads are.
    max_loaded_heads: how many of them may be loaded at once.
    max_requests_per_key: requests of a key that may be under way at once.
    requests_per_minute: of a key, averaged; a minute's worth may come at once.
    allowed_hosts: host names that a request may name, such as api.example.org or *.example.org; by default
    any, and on a loopback address the loopback names alone, so that no web page reaches the server by a
    name of its own (DNS rebinding).
    allowed_origins: origins of web pages that may read replies (CORS), such as https://example.org, or *.
    max_connections: of clients at once; who comes beyond them is answered 503.
    max_queued_requests: requests that may be admitted and not finished; more are answered 429.
    max_queued_tokens: of prompts and replies that these may have together, at most.
    read_timeout: seconds that a client may take for a request's headers, and again for its body.
    write_timeout: seconds in which a client has to take some of what waits for it, or it is cut off.
    request_timeout: seconds after which a request ends with an error, whatever it has by then.
    queue_timeout: seconds that a request may wait to begin; then it is answered 503. Streams answer 200 once
    they have begun.
    share_prefixes: let requests of different keys share the keys and values of a prefix; how long a reply
    takes to begin then tells a client what others have asked.
    """

    api_keys: Path | None = None
    admin_keys: Path | None = None
    heads_dir: Path | None = None
    max_loaded_heads: int = 8
    max_requests_per_key: int | None = None
    requests_per_minute: float | None = None
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    max_connections: int = 2048
    max_queued_requests: int = 4096
    max_queued_tokens: int = 16_000_000
    read_timeout: float = 30.0
    write_timeout: float = 30.0
    request_timeout: float | None = None
    queue_timeout: float | None = None
    share_prefixes: bool = False

    def __post_init__(self) -> None:
        for name in (
            "max_loaded_heads",
            "max_requests_per_key",
            "max_connections",
            "max_queued_requests",
            "max_queued_tokens",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in (
            "requests_per_minute",
            "read_timeout",
            "write_timeout",
            "request_timeout",
            "queue_timeout",
        ):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be a number above 0, got {value:g}")
