"""Engine alone: completes the load client's requests in a process of its own, without HTTP.

Started by benchmarks.serving as `PYTHON engine_worker.py MODEL MAX_NUM_SEQS MAX_MODEL_LEN`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trimtab.server.engine.async_engine import AsyncEngine
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.request import ChoiceDone, Finished, Request, SamplingParams

Job = dict[str, Any]
NAMES = itertools.count()


def requests_of(job: Job) -> list[Request]:
    sampling = SamplingParams(max_tokens=job["new_tokens"], ignore_eos=True)
    return [Request(f"alone-{next(NAMES)}", tuple(prompt), sampling) for prompt in job["prompts"]]


def through_engine(engine: Engine, requests: Sequence[Request], num_streams: int) -> int:
    """Steps the engine until all are done, with so many under way; the tokens of their replies."""
    waiting, num_open, num_tokens = iter(requests), 0, 0
    for request in itertools.islice(waiting, num_streams):
        engine.add(request)
        num_open += 1
    while num_open:
        for event in engine.step():
            if isinstance(event, ChoiceDone):
                num_tokens += event.num_tokens
            if isinstance(event, Finished):
                num_open -= 1
                for request in itertools.islice(waiting, 1):
                    engine.add(request)
                    num_open += 1
    return num_tokens


async def through_async_engine(engine: AsyncEngine, requests: Sequence[Request], num_streams: int) -> int:
    """The same, by its asynchronous side: what the HTTP server asks."""
    waiting = iter(requests)

    async def stream(waiting: Iterator[Request]) -> int:
        num_tokens = 0
        for request in waiting:
            async for event in await engine.submit(request):
                num_tokens += event.num_tokens if isinstance(event, ChoiceDone) else 0
        return num_tokens

    return sum(await asyncio.gather(*(stream(waiting) for _ in range(num_streams))))


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print goes to stderr, so that stdout carries JSON alone
    model, max_num_seqs, max_model_len = sys.argv[1:]
    config = EngineConfig(Path(model), max_num_seqs=int(max_num_seqs), max_model_len=int(max_model_len))
    engine = Engine.from_config(config)
    print(json.dumps({"version": "engine"}), file=out, flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        requests, num_streams = requests_of(job), job["num_streams"]
        asynchronous = AsyncEngine(lambda: engine)  # for one job: two threads must not step one engine
        if job["through"] != "engine":
            asynchronous.start()
            asynchronous.wait_until_loaded()
        began = time.perf_counter()
        if job["through"] == "engine":
            num_tokens = through_engine(engine, requests, num_streams)
        else:
            num_tokens = asyncio.run(through_async_engine(asynchronous, requests, num_streams))
        seconds = time.perf_counter() - began
        asynchronous.stop()
        answer = {"tokens": num_tokens, "seconds": seconds, "tokens_per_second": num_tokens / seconds}
        print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main()
