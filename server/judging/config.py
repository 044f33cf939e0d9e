"""Configuration of a judge: names which is asked, and how patiently."""

from __future__ import annotations

import os
from dataclasses import dataclass

from trimtab.guidance.errors import UserError


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """A judge model behind an OpenAI-compatible URL.

    judge_url: the judge's address, up to and with `/v1`, such as http://127.0.0.1:8000/v1 of `trimtab
    serve`.
    judge_model: the judge's name in requests; by default they name none, which a server of one model
    takes.
    api_key_env: environment variable that holds the API key, where one is needed.
    concurrency: questions that are open at the same time.
    timeout: seconds to wait for the whole of one answer, which may have 4 MiB.
    retries: further tries of a question after a time-out, a broken connection, or a status of 429 or 5xx.
    max_failures: share of questions that may go unanswered; more stop the command. Answers are kept, so
    that the same command goes on from there.
    """

    judge_url: str = ""
    judge_model: str = ""
    api_key_env: str = ""
    concurrency: int = 8
    timeout: float = 60.0
    retries: int = 3
    max_failures: float = 0.1

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, got {self.concurrency}")
        if not self.timeout > 0:
            raise ValueError(f"timeout must be above 0 seconds, got {self.timeout}")
        if self.retries < 0:
            raise ValueError(f"retries must be 0 or more, got {self.retries}")
        if not 0 <= self.max_failures <= 1:
            raise ValueError(f"max_failures must be a share, 0…1, got {self.max_failures}")

    @property
    def endpoint(self) -> str:
        """Raises UserError for what is no HTTP URL."""
        if not self.judge_url:
            raise UserError("the judge has no URL: give --judge-url, up to and with /v1")
        if not self.judge_url.startswith(("http://", "https://")):
            raise UserError(
                f"the judge's URL {self.judge_url!r} must begin with http:// or https://, and end in /v1"
            )
        return self.judge_url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"

    def headers(self) -> dict[str, str]:
        """Raises UserError when the variable named by api_key_env is not set."""
        if not self.api_key_env:
            return {}
        key = os.environ.get(self.api_key_env)
        if not key:
            raise UserError(f"--api-key-env {self.api_key_env}: this environment variable is not set")
        return {"Authorization": f"Bearer {key}"}
