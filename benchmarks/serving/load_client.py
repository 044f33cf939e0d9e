"""Load client: keeps so many streams open on a server and times their tokens, in a process of its own.

Started by benchmarks.serving as `PYTHON load_client.py`: a JSON job a line in, what was seen a line out.
It runs on the server's cores, so that while replies come it does as little as it can: it notes what arrived
when, of all streams together, and reads that afterwards.
"""

from __future__ import annotations

import itertools
import json
import math
import select
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

import h11

TIMEOUT = 300.0  # seconds in which something has to come
REST = 0.001  # seconds for which more is waited for once something has come: times are late by that at most
READ_SIZE = 2**16
WARM_UP_TOKENS = 8
_CLOSED = h11.ConnectionClosed()
Json = dict[str, Any]


@dataclass(slots=True)
class Reply:
    """What one request saw. began: seconds, of the clock of `arrived`: (when, bytes). error: None if none."""

    began: float
    arrived: list[tuple[float, bytes]] = field(default_factory=list)
    error: str | None = None


class Exchange:
    """One request and its reply, on a connection of their own that ends with them."""

    def __init__(self, url: str, body: Json) -> None:
        where, content = urlsplit(url), json.dumps(body).encode()
        headers = {"Host": where.netloc, "Content-Type": "application/json", "Connection": "close"}
        headers["Content-Length"] = str(len(content))
        request = h11.Request(method="POST", target=where.path, headers=[*headers.items()])
        self._address, self._http = (where.hostname, where.port), h11.Connection(h11.CLIENT)
        events = (request, h11.Data(data=content), h11.EndOfMessage())
        self._request = b"".join(self._http.send(event) or b"" for event in events)
        self._arrived: list[tuple[float, bytes]] = []
        self._began, self._error = 0.0, ""

    def begin(self) -> int | None:
        """Sends the request. The number of the file that its reply comes in; None where nobody listens."""
        self._began = time.perf_counter()
        try:
            self._socket = socket.create_connection(self._address, TIMEOUT)
            self._socket.sendall(self._request)
        except OSError as error:
            self._error = f"{type(error).__name__}: {error}"
            return None
        return self._socket.fileno()

    def take(self) -> bool:
        """What has arrived. False where nothing more can come."""
        try:
            data = self._socket.recv(READ_SIZE)
        except OSError as error:
            data, self._error = b"", f"{type(error).__name__}: {error}"
        self._arrived.append((time.perf_counter(), data))
        if not data:
            self._socket.close()
        return bool(data)

    def reply(self) -> Reply:
        """The pieces of its body as they arrived."""
        reply, status = Reply(self._began), 0
        try:
            for when, data in self._arrived:
                self._http.receive_data(data)
                while (event := self._http.next_event()) not in (h11.NEED_DATA, h11.PAUSED, _CLOSED):
                    if isinstance(event, h11.Response):
                        status = event.status_code
                    elif isinstance(event, h11.Data):
                        reply.arrived.append((when, bytes(event.data)))
        except h11.RemoteProtocolError as error:
            self._error = self._error or f"not HTTP, or cut off: {error}"
        if status not in (0, 200):
            text = b"".join(data for _, data in reply.arrived).decode(errors="replace")
            return Reply(self._began, error=f"status {status}: {text[:200]}")
        if self._http.their_state is not h11.CLOSED:
            reply.error = self._error or "it did not come to an end in time"
        return reply


def load(exchanges: Sequence[Exchange], num_streams: int) -> None:
    """All of them; each stream begins the next one when its own has ended."""
    waiting, poll, under_way = iter(exchanges), select.poll(), dict[int, Exchange]()

    def begin(most: int) -> None:
        for exchange in itertools.islice(waiting, most):
            number = exchange.begin()
            if number is not None:
                under_way[number] = exchange
                poll.register(number, select.POLLIN)

    begin(num_streams)
    while under_way and poll.poll(1000 * TIMEOUT):
        time.sleep(REST)
        for number, _ in poll.poll(0):
            if not under_way[number].take():
                poll.unregister(number)
                del under_way[number]
                begin(1)


def events(reply: Reply) -> Iterator[tuple[float, Any]]:
    """(when it was whole, what it says) of each server-sent event with JSON."""
    rest = b""
    for when, data in reply.arrived:
        *whole, rest = (rest + data).split(b"\n\n")
        for event in whole:
            if event.startswith(b"data: {"):
                yield when, json.loads(event[6:])


def times_of(reply: Reply) -> tuple[list[float], int]:
    """When its pieces of text came, and its tokens as the server counts them. A reply that says of an error,
    or has no count, gets one."""
    times, num_tokens = [], 0
    for when, event in events(reply):
        if "error" in event:
            reply.error = str(event["error"])[:200]
        if any(choice.get("text") for choice in event.get("choices", ())):
            times.append(when)
        num_tokens = (event.get("usage") or {}).get("completion_tokens", num_tokens)
    if reply.error is None and not num_tokens:
        reply.error = "the stream ended without its usage"
    return times, num_tokens


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that so large a share does not pass (the nearest rank)."""
    ranked = sorted(values)
    return ranked[max(math.ceil(share * len(ranked)) - 1, 0)] if ranked else None


def summary(replies: Sequence[Reply], began: float, cpu_seconds: float) -> Json:
    """Milliseconds and tokens a second; first_token and between_tokens as p50 and p99 of this load."""
    first, between = list[float](), list[float]()
    num_tokens, ended = 0, began
    for reply in replies:
        times, num = times_of(reply)
        num_tokens += num
        if reply.arrived:
            ended = max(ended, reply.arrived[-1][0])
        if times:
            first.append(times[0] - reply.began)
            between += [after - before for before, after in itertools.pairwise(times)]
    seconds = ended - began
    errors = [reply.error for reply in replies if reply.error is not None]
    found: Json = {"replies": len(replies), "errors": len(errors), "tokens": num_tokens, "seconds": seconds}
    found["tokens_per_second"] = num_tokens / seconds if seconds else 0.0
    for name, values in (("first_token_ms", first), ("between_tokens_ms", between)):
        for share in (50, 99):
            value = percentile(values, share / 100)
            found[f"{name}_p{share}"] = None if value is None else 1000 * value
    found["client_cpu_share"] = cpu_seconds / seconds if seconds else 0.0  # of one core
    if errors:
        found["first_error"] = errors[0]
    return found


def run(job: Json) -> Json:
    """job: url, num_streams, prompts (token ids), new_tokens, and fields of the requests beside these."""
    common = {"stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True}
    common |= {"temperature": 1.0, **job["fields"]}

    def exchanges(prompts: Sequence[Sequence[int]], new_tokens: int) -> list[Exchange]:
        bodies = [{"prompt": [*prompt], "max_tokens": new_tokens, **common} for prompt in prompts]
        return [Exchange(job["url"], body) for body in bodies]

    num_streams, prompts = job["num_streams"], job["prompts"]
    others = [prompt[::-1] for prompt in prompts[:num_streams]]  # nobody is to find the timed ones in a cache
    load(exchanges(others, WARM_UP_TOKENS), num_streams)
    timed = exchanges(prompts, job["new_tokens"])
    cpu, began = time.process_time(), time.perf_counter()
    load(timed, num_streams)
    cpu_seconds = time.process_time() - cpu
    return summary([exchange.reply() for exchange in timed], began, cpu_seconds)


def main() -> None:
    print(json.dumps({"version": f"h11 {version('h11')}"}), flush=True)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
