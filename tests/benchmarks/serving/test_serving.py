"""The load of servers: what the client reads of streams, what is measured and when, and the tables."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common import replace_between_markers
from benchmarks.serving import guidellm, load_client, servers
from benchmarks.serving.__main__ import Load, Records, ServingConfig, loads_of
from benchmarks.serving.load_client import Reply, percentile, summary, times_of
from benchmarks.serving.table import BEGIN, END, as_markdown, read_reports

SERVER = Path(__file__).parents[3] / "server"


def event(text: str, **more: object) -> bytes:
    return b"data: " + json.dumps({"choices": [{"text": text}], **more}).encode() + b"\n\n"


USAGE = b'data: {"choices": [], "usage": {"completion_tokens": 3}}\n\ndata: [DONE]\n\n'


def test_a_piece_of_text_has_the_time_at_which_it_was_whole():
    first, second = event("a"), event("b")
    arrived = [(1.0, first[:9]), (2.0, first[9:] + second[:-1]), (3.0, second[-1:] + event("")), (4.0, USAGE)]
    assert times_of(Reply(0.0, arrived)) == ([2.0, 3.0], 3)


def test_a_load_tells_of_waits_in_milliseconds_and_of_what_failed():
    replies = [
        Reply(0.0, [(0.5, event("a")), (0.75, event("b")), (1.0, USAGE)]),
        Reply(0.0, [(0.25, event("a")), (2.0, b'data: {"error": {"message": "no"}}\n\n')]),
        Reply(0.0, [], "status 503"),
        Reply(0.0, [(0.25, event("a"))]),  # no usage
    ]
    found = summary(replies, 0.0, 0.5)
    assert (found["replies"], found["errors"], found["tokens"], found["seconds"]) == (4, 3, 3, 2.0)
    assert (found["tokens_per_second"], found["client_cpu_share"]) == (1.5, 0.25)
    assert (found["first_token_ms_p50"], found["first_token_ms_p99"]) == (250, 500)
    assert found["between_tokens_ms_p50"] == 250
    assert "no" in found["first_error"]


REPLIES = {
    b"whole": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
    b"cut": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n",
    b"refused": b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbusy",
    b"silent": b"",
}


def test_as_many_streams_as_asked_for_are_open_and_each_reply_is_read_to_its_end():
    """A server that answers once two requests are there, by what they ask, in two parts."""
    num_open, most_open, both = 0, 0, asyncio.Event()
    exchanges: list[load_client.Exchange] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num_open, most_open
        request = await reader.readuntil(b"}")
        num_open += 1
        most_open = max(most_open, num_open)
        if num_open == 2:
            both.set()
        await both.wait()
        number, said = next((i, REPLIES[name]) for i, name in enumerate(REPLIES) if name in request)
        writer.write(said[:-14])
        while said and not exchanges[number]._arrived:
            await asyncio.sleep(0.001)
        writer.write(said[-14:])
        await writer.drain()
        num_open -= 1
        writer.close()

    async def serve() -> list[load_client.Exchange]:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        exchanges.extend(load_client.Exchange(url, {"prompt": name.decode()}) for name in REPLIES)
        await asyncio.to_thread(load_client.load, exchanges, 2)
        server.close()
        gone = load_client.Exchange(url, {})
        await asyncio.to_thread(load_client.load, [gone], 1)
        return [*exchanges, gone]

    whole, cut, refused, silent, gone = (exchange.reply() for exchange in asyncio.run(serve()))
    assert most_open == 2
    assert (whole.error, b"".join(data for _, data in whole.arrived)) == (None, b"abcde")
    times = [whole.began, *(when for when, _ in whole.arrived)]
    assert times == sorted(times) and len({*times}) == 3
    assert "cut off" in cut.error and "status 503: busy" in refused.error and "cut off" in silent.error
    assert "Refused" in gone.error


def test_the_prompts_that_are_timed_were_not_sent_before(monkeypatch: pytest.MonkeyPatch):
    sent: list[list[list[int]]] = []

    class Sent:
        def __init__(self, url: str, body: dict[str, Any]) -> None:
            self.prompt = body["prompt"]

        def reply(self) -> Reply:
            return Reply(0.0)

    def load(exchanges: list[Sent], num_streams: int) -> None:
        sent.append([exchange.prompt for exchange in exchanges])

    monkeypatch.setattr(load_client, "Exchange", Sent)
    monkeypatch.setattr(load_client, "load", load)
    prompts = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    load_client.run({"url": "", "num_streams": 2, "prompts": prompts, "new_tokens": 4, "fields": {}})
    warm_up, timed = sent
    assert timed == prompts
    assert len(warm_up) == 2 and not any(prompt in prompts for prompt in warm_up)


def test_a_percentile_is_a_value_that_was_seen():
    assert [percentile(range(1, 101), share) for share in (0.5, 0.99, 1.0)] == [50, 99, 100]
    assert percentile([7.0], 0.99) == 7.0
    assert percentile([], 0.5) is None


CONFIG = ServingConfig(streams=(1, 32), vllm_python=Path("v"), guidellm_python=Path("g"), turns=(2, 2))


def test_who_begins_a_turn_comes_last_in_the_next():
    loads = [load for load in loads_of(CONFIG, "llama-31m", 2) if load.streams == 32]
    names = ["plain", "guided", "vllm", "engine", "async engine"]
    assert [load.contestant for load in loads] == [*names, *names[1:], names[0]]
    crossed = [load for load in loads_of(CONFIG, "smollm2", 2) if load.contestant == "guidellm"]
    assert crossed == [Load("smollm2", "guidellm", 32, 0)]


def test_what_was_measured_is_there_after_a_run_that_was_ended(tmp_path: Path):
    config = ServingConfig(out=tmp_path / "new" / "load-a.json")
    load = Load("smollm2", "plain", 8, 1)
    Records(config).add(load, {"tokens": 1})
    again = Records(config)
    assert again.has(load) and not again.has(Load("smollm2", "plain", 8, 0))
    assert not Records(ServingConfig(out=config.out, new_tokens=5)).found  # of another run
    again.remove()
    assert not Records(config).found


def test_a_server_that_ends_is_told_of_with_its_log(tmp_path: Path):
    server = servers.Server([sys.executable, "-c", "exit('no such model')"], 1, tmp_path / "log")
    with pytest.raises(SystemExit, match="no such model"):
        server.wait()


def test_guidellm_is_told_as_our_client_is():
    times = {"successful": {"percentiles": {"p50": 1.0, "p99": 2.0}}}
    metrics = {
        "request_totals": {"total": 4, "successful": 3},
        "time_to_first_token_ms": times,
        "inter_token_latency_ms": times,
        "output_token_count": {"successful": {"total_sum": 30.0}},
    }
    found = guidellm.figures({"benchmarks": [{"metrics": metrics, "duration": 2.0}]})
    assert (found["errors"], found["tokens_per_second"], found["first_token_ms_p99"]) == (1, 15.0, 2.0)


def record(contestant: str, turn: int, rate: float, errors: int = 0) -> dict[str, object]:
    names = ("first_token_ms_p50", "first_token_ms_p99", "between_tokens_ms_p50", "between_tokens_ms_p99")
    figures = dict.fromkeys(names, 10.0) if "engine" not in contestant else {}
    load = {"model": "llama-31m", "contestant": contestant, "streams": 32, "turn": turn}
    return {"load": load, "replies": 64, "errors": errors, "tokens_per_second": rate, **figures}


def test_ratios_are_taken_within_turns_and_errors_are_summed():
    records = [record("plain", 1, 1900.0, 2), record("plain", 0, 95.0), record("engine", 0, 100.0)]
    report = {"records": [*records, record("engine", 1, 2000.0)], "absent": ["vllm: give it"]}
    table = as_markdown([report])
    assert "| 32 | plain | 998 (276…1720) | 10 (10…10) | 10 (10…10) |" in table
    assert "| 2 of 128 |" in table
    assert "| plain through HTTP ÷ the engine alone | 32 | 0.95 (0.95…0.95) | ≥ 0.9 |" in table
    assert "Absent: vllm: give it" in table


def test_what_a_token_took_the_event_loop_is_told_where_it_was_measured():
    records = [{**record("plain", turn, 95.0), "loop_us_per_token": 40.0 + turn} for turn in range(3)]
    told = as_markdown([{"records": [*records, record("guided", 0, 95.0)]}])
    assert "for a token, its requests' share in it: plain: 41 at 32." in told
    assert "event loop" not in as_markdown([{"records": [record("guided", 0, 95.0)]}])


def test_the_servers_page_says_what_the_committed_reports_say():
    page = (SERVER / "README.md").read_text(encoding="utf-8")
    assert replace_between_markers(page, BEGIN, END, as_markdown(read_reports(SERVER / "results"))) == page
