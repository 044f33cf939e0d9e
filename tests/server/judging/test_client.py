"""The judge's client against a server that is slow, busy, wrong or silent."""

from __future__ import annotations

import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from local_judge import LocalJudge, Say, local_judge

from trimtab.guidance.errors import UserError
from trimtab.server.judging import client
from trimtab.server.judging.answers import Answer, AnswerFile, Question
from trimtab.server.judging.client import Answers, FailureError, Judge, retry_after
from trimtab.server.judging.config import JudgeConfig
from trimtab.server.judging.questions import read_choice

QUESTIONS = [Question(f"question {i}", 4) for i in range(10)]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_PAUSE", 0.0)


@pytest.fixture
def ask(tmp_path: Path) -> Callable[..., Answers[float]]:
    def run(judge: LocalJudge, questions=QUESTIONS, **options) -> Answers[float]:
        config = JudgeConfig(**{"judge_url": judge.url, "max_failures": 1.0, "timeout": 20.0, **options})
        return Judge(config, AnswerFile(tmp_path / "answers.jsonl")).ask(questions, read_choice, "answers")

    return run


def test_answers_come_in_the_order_of_the_questions(ask):
    with local_judge(lambda text: Say("A" if int(text[-1]) % 2 else "B")) as judge:
        assert ask(judge, concurrency=4).results == [float(i % 2) for i in range(10)]
    assert all(body["temperature"] == 0 and "model" not in body for body in judge.asked)


def test_good_answers_are_asked_for_once(ask):
    with local_judge(lambda text: Say("A" if "3" not in text else "what?")) as judge:
        first = ask(judge)
        assert first.failures == {"garbage": 1}
        judge.answer = lambda text: Say("B")
        again = ask(judge)
    assert again.num_cached == 9
    assert again.results == [1.0] * 3 + [0.0] + [1.0] * 6
    assert len(judge.asked) == 11


def test_a_line_that_was_cut_by_a_kill_is_asked_for_again(ask, tmp_path):
    with local_judge(lambda text: Say("A")) as judge:
        ask(judge)
        path = tmp_path / "answers.jsonl"
        path.write_bytes(path.read_bytes()[:-7])
        assert ask(judge).num_cached == 9
        assert ask(judge).num_cached == 10
    assert len(path.read_text().splitlines()) == 10


def test_another_model_or_url_is_another_question(ask):
    with local_judge(lambda text: Say("A")) as judge:
        ask(judge)
        assert ask(judge, judge_model="other").num_cached == 0
    assert judge.asked[-1]["model"] == "other"


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_judge_is_asked_again(ask, status):
    numbers = itertools.count()

    def busy_twice(text: str) -> Say:
        return Say("busy", status=status) if next(numbers) < 2 else Say("A")

    with local_judge(busy_twice) as judge:
        answers = ask(judge, QUESTIONS[:1], retries=2)
    assert (answers.results, len(judge.asked)) == ([1.0], 3)


def test_retries_come_to_an_end_and_the_status_is_counted(ask):
    with local_judge(lambda text: Say("over capacity", status=503)) as judge:
        answers = ask(judge, QUESTIONS[:2], retries=1)
    assert answers.failures == {"status 503": 2}
    assert "over capacity" in str(answers.results[0])
    assert len(judge.asked) == 4


def test_the_server_s_own_pause_is_honoured(ask, monkeypatch):
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(client.asyncio, "sleep", sleep)
    says = iter([Say("wait", status=429, headers={"Retry-After": "7"}), Say("A")])
    with local_judge(lambda text: next(says)) as judge:
        assert ask(judge, QUESTIONS[:1]).results == [1.0]
    assert slept == [7.0]


def test_retry_after_is_seconds_or_a_date():
    assert retry_after("2.5", now=0) == 2.5
    assert retry_after("Thu, 01 Jan 1970 00:01:40 GMT", now=60) == 40
    assert retry_after("Thu, 01 Jan 1970 00:00:00 GMT", now=60) == 0
    assert retry_after("soon", now=0) is None
    assert retry_after(None, now=0) is None


def test_a_judge_that_hangs_costs_its_question_alone(ask):
    def hang_at_4(text: str) -> Say:
        if text.endswith("4"):
            judge.released.wait(60)
        return Say("A")

    with local_judge(hang_at_4) as judge:
        answers = ask(judge, timeout=3.0, retries=0)
        assert answers.failures == {"timed out": 1}
        assert isinstance(answers.results[4], FailureError)
        assert answers.results.count(1.0) == 9


def test_too_many_failures_stop_with_what_was_got_kept(ask, tmp_path):
    with (
        local_judge(lambda text: Say("A" if text[-1] in "012" else "hm")) as judge,
        pytest.raises(UserError, match="'hm'") as stopped,
    ):
        ask(judge, max_failures=0.2, concurrency=1)
    assert "3 of 6 questions unanswered" in str(stopped.value)
    assert "--max-failures" in str(stopped.value)
    assert len(AnswerFile(tmp_path / "answers.jsonl")) == 3
    assert len(judge.asked) == 6


def test_a_judge_that_never_answers_is_given_up_long_before_its_share(ask):
    many = [Question(f"question {i}", 4) for i in range(1000)]
    with local_judge(lambda text: Say("no")) as judge, pytest.raises(UserError, match="unanswered"):
        ask(judge, many, max_failures=0.5, concurrency=2)
    assert len(judge.asked) < 30


@pytest.mark.parametrize("status", [401, 404])
def test_a_refusal_that_every_question_would_get_stops_at_once(ask, status):
    with (
        local_judge(lambda text: Say("wrong key", status=status)) as judge,
        pytest.raises(UserError) as stopped,
    ):
        ask(judge, concurrency=1)
    assert "wrong key" in str(stopped.value)
    assert len(judge.asked) == 1


def test_a_judge_that_is_not_there_is_named(ask):
    with local_judge(lambda text: Say("A")) as judge:
        pass
    with pytest.raises(UserError, match="not reached"):
        ask(judge, retries=0, max_failures=0.0)


def test_the_key_is_taken_from_the_environment(ask, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "s3cret")
    with local_judge(lambda text: Say("A")) as judge:
        ask(judge, QUESTIONS[:1], api_key_env="JUDGE_KEY")
    assert judge.keys == ["Bearer s3cret"]


def test_probabilities_are_kept_with_the_answer(ask, tmp_path):
    soft = [Question("question", 4, wants_logprobs=True)]
    with local_judge(lambda text: Say("A", first={"A": -0.25, "B": -1.5})) as judge:
        first, again = ask(judge, soft), ask(judge, soft)
    assert first.results == again.results != [1.0]
    assert judge.asked[0]["top_logprobs"] == 20
    (line,) = (tmp_path / "answers.jsonl").read_text().splitlines()
    assert json.loads(line)["first"] == [["A", -0.25], ["B", -1.5]]
    assert isinstance(first.results[0], float)


def test_a_url_is_taken_with_and_without_what_follows_v1():
    for url in ("http://h/v1", "http://h/v1/", "http://h/v1/chat/completions"):
        assert JudgeConfig(judge_url=url).endpoint == "http://h/v1/chat/completions"
    for url in ("", "h:80/v1", "ftp://h/v1"):
        with pytest.raises(UserError):
            _ = JudgeConfig(judge_url=url).endpoint


def test_an_answer_file_gives_back_what_it_was_given(tmp_path):
    file = AnswerFile(tmp_path / "deep" / "answers.jsonl")
    file.put("k", Answer("A\nü", (("A", -0.5),)))
    assert AnswerFile(file.path).get("k") == Answer("A\nü", (("A", -0.5),))
    assert AnswerFile(file.path).get("other") is None


OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@contextmanager
def speaking(pieces: Callable[[], Iterator[bytes]]) -> Iterator[str]:
    """A judge's URL that answers every connection with these bytes, as long as somebody takes them."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.recv(65536)
            for piece in pieces():
                connection.sendall(piece)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):  # what is closed unread is reset
                pass

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    with listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        listener.shutdown(socket.SHUT_RDWR)


def endless(start: bytes, piece: bytes, pause: float = 0.0) -> Callable[[], Iterator[bytes]]:
    def pieces() -> Iterator[bytes]:
        yield start
        while True:
            yield piece
            time.sleep(pause)

    return pieces


def once(body: bytes, *headers: bytes) -> Callable[[], Iterator[bytes]]:
    head = OK + b"".join(header + b"\r\n" for header in headers)
    return lambda: iter([head + b"Content-Length: %d\r\n\r\n" % len(body) + body])


HOSTILE: dict[str, tuple[Callable[[], Iterator[bytes]], str]] = {
    "a body without an end": (endless(OK + b"\r\n", b" " * 65536), "too long: more than 4194304 bytes"),
    "an error without an end": (endless(b"HTTP/1.1 400 No\r\n\r\n", b"x\x1b" * 9999), "status 400: x"),
    "a body that trickles": (endless(OK + b"\r\n", b" ", 0.05), "timed out"),
    "headers that trickle": (endless(OK, b"x: y\r\n", 0.05), "timed out"),
    "a status that trickles": (endless(b"HTTP/1.1 2", b"0", 0.05), "timed out"),
    "headers without an end": (endless(OK, b"x: y\r\n" * 9999), "not reached"),
    "nesting": (once(b"[" * 1_000_000), "garbage"),
    "digits": (once(b'{"choices": ' + b"1" * 1_000_000), "garbage"),
    "no UTF-8": (once(b"\xff\x00"), "garbage"),
    "a bomb": (once(b"\x1f\x8b\x08", b"Content-Encoding: gzip"), "garbage"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_whatever_a_judge_says_is_one_short_failure_in_time(case: str, tmp_path: Path):
    pieces, told = HOSTILE[case]
    with speaking(pieces) as url:
        config = JudgeConfig(
            judge_url=url, max_failures=1.0, timeout=0.5 if "trickle" in case else 20, retries=0
        )
        start = time.monotonic()
        answers = Judge(config, AnswerFile(tmp_path / "answers.jsonl")).ask(QUESTIONS[:1], read_choice, "")
        assert time.monotonic() - start < 10
    (failure,) = answers.results
    assert str(failure).startswith(told), failure
    assert str(failure).isprintable() and len(str(failure)) < 400
