"""Asks a judge many questions at once, with retries, and counts what it fails to answer."""

from __future__ import annotations

import asyncio
import email.utils
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import httpx
from tqdm.auto import tqdm

from trimtab.guidance.errors import UserError, first_line, printable
from trimtab.server.judging.answers import (
    Answer,
    AnswerFile,
    GarbageError,
    Question,
    question_key,
    read_answer,
)
from trimtab.server.judging.config import JudgeConfig

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0
MAX_REPLY_BYTES = 4 * 2**20
FIRST_ANSWERS = 20
"""When so many questions were asked and none was answered, the judge is given up."""
T = TypeVar("T")


class FailureError(Exception):
    """One question without an answer. kind: under which it is counted."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind = kind


class _RetryableError(FailureError):
    """One that a further try may answer. pause: seconds that the server asks to wait."""

    def __init__(self, kind: str, detail: str = "", pause: float | None = None) -> None:
        super().__init__(kind, detail)
        self.pause = pause


@dataclass(slots=True)
class Answers(Generic[T]):
    """results: what was read from each answer, in the order of the questions, or the failure."""

    results: list[T | FailureError]
    num_cached: int = 0
    failures: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.failures.most_common())
        return f"{self.failures.total()} of {len(self.results)} questions were not answered ({kinds})"


class Judge:
    """One judge model; its good answers are kept in a file."""

    def __init__(self, config: JudgeConfig, file: AnswerFile) -> None:
        """Raises UserError for a URL or an API key that cannot be."""
        self.config, self.file = config, file
        self.url, self.headers = config.endpoint, config.headers()

    def ask(self, questions: Sequence[Question], read: Callable[[Answer], T], progress: str) -> Answers[T]:
        """read: what an answer says; raises GarbageError where it says nothing that was asked.

        Raises UserError when the judge refuses us, or leaves more than max_failures unanswered.
        """
        return asyncio.run(self._ask(questions, read, progress))

    async def _ask(
        self, questions: Sequence[Question], read: Callable[[Answer], T], progress: str
    ) -> Answers[T]:
        answers: Answers[T] = Answers([FailureError("not asked")] * len(questions))
        numbers = iter(range(len(questions)))
        with tqdm(total=len(questions), desc=progress, unit="answer") as bar:
            async with httpx.AsyncClient(headers=self.headers, timeout=self.config.timeout) as client:

                async def work() -> None:
                    for number in numbers:
                        try:
                            result, is_known = await self._one(client, questions[number], read)
                            answers.results[number] = result
                            answers.num_cached += is_known
                        except FailureError as failure:
                            answers.results[number] = failure
                            answers.failures[failure.kind] += 1
                        bar.update()
                        self._check_failures(answers, bar.n)

                await _run_all([work() for _ in range(self.config.concurrency)])
        return answers

    def _check_failures(self, answers: Answers[T], num_asked: int) -> None:
        failed = answers.failures.total()
        is_silent = failed >= FIRST_ANSWERS and failed == num_asked and self.config.max_failures < 1
        if failed > self.config.max_failures * len(answers.results) or is_silent:
            example = next(
                r for r in answers.results if isinstance(r, FailureError) and str(r) != "not asked"
            )
            raise UserError(
                f"the judge at {self.url} left {failed} of {num_asked} questions unanswered, such as "
                f"{example}; good answers are kept in {self.file.path}: mend it and run again, "
                "or raise --max-failures"
            )

    async def _one(
        self, client: httpx.AsyncClient, question: Question, read: Callable[[Answer], T]
    ) -> tuple[T, bool]:
        """What was read, and whether the answer was known before."""
        body = question.body(self.config.judge_model)
        key = question_key(self.url, body)
        known = self.file.get(key)
        answer = known or await self._try_often(client, body)
        try:
            result = read(answer)
        except GarbageError as error:
            raise FailureError("garbage", str(error)) from error
        if known is None:
            self.file.put(key, answer)
        return result, known is not None

    async def _try_often(self, client: httpx.AsyncClient, body: dict[str, object]) -> Answer:
        for attempt in range(self.config.retries + 1):
            try:
                return await self._try(client, body)
            except _RetryableError as failure:
                if attempt == self.config.retries:
                    raise
                pause = FIRST_PAUSE * 2**attempt * random.uniform(0.75, 1.25)
                asked = pause if failure.pause is None else failure.pause
            await asyncio.sleep(min(asked, LONGEST_PAUSE))
        raise AssertionError

    async def _try(self, client: httpx.AsyncClient, body: dict[str, object]) -> Answer:
        try:
            async with asyncio.timeout(self.config.timeout):  # httpx counts the seconds between two bytes
                reply = await _ask_once(client, self.url, body)
        except (TimeoutError, httpx.TimeoutException) as error:
            raise _RetryableError("timed out", f"no answer in {self.config.timeout:g} s") from error
        except httpx.InvalidURL as error:
            raise UserError(f"the judge's URL {self.url} is none ({error})") from error
        except httpx.TransportError as error:
            raise _RetryableError("not reached", str(error)) from error
        status = reply.status
        if status == 429 or status >= 500:
            pause = retry_after(reply.retry_after, time.time())
            raise _RetryableError(f"status {status}", reply.reason, pause)
        if status in (401, 403, 404, 405):
            raise UserError(f"the judge at {self.url} refuses with status {status}: {reply.reason}")
        if status != 200:
            raise FailureError(f"status {status}", reply.reason)
        if not reply.is_whole:
            raise FailureError("too long", f"more than {MAX_REPLY_BYTES} bytes")
        try:
            return read_answer(json.loads(reply.body))
        except (ValueError, RecursionError) as error:
            raise FailureError("garbage", first_line(error)) from error


@dataclass(frozen=True, slots=True)
class _Reply:
    """body: MAX_REPLY_BYTES of it at most."""

    status: int
    retry_after: str | None
    body: bytes
    is_whole: bool

    @property
    def reason(self) -> str:
        """The words of a refusal, in so few characters that a line holds them."""
        try:
            text = str(json.loads(self.body)["error"]["message"])
        except (ValueError, KeyError, TypeError, RecursionError):
            text = self.body.decode(errors="replace")
        return printable(" ".join(text.split()))[:200]


async def _ask_once(client: httpx.AsyncClient, url: str, body: dict[str, object]) -> _Reply:
    """Raises like httpx."""
    plain = {"Accept-Encoding": "identity"}  # what is packed small may be large
    async with client.stream("POST", url, json=body, headers=plain) as response:
        read, is_whole = bytearray(), True
        async for chunk in response.aiter_raw():
            read += chunk[: MAX_REPLY_BYTES - len(read)]
            if len(read) == MAX_REPLY_BYTES:
                is_whole = False
                break
        return _Reply(response.status_code, response.headers.get("Retry-After"), bytes(read), is_whole)


def retry_after(header: str | None, now: float) -> float | None:
    """Seconds to wait by a Retry-After header, which holds seconds or a date; None for none or garbage."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        return None


async def _run_all(work: Iterable[Coroutine[None, None, None]]) -> None:
    """Until all are done; the first error ends the others and is raised."""
    tasks = [asyncio.ensure_future(item) for item in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
