"""What an engine says of itself while it works, and of a request's time once it is over."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from trimtab.server.engine.engine import Engine
from trimtab.server.engine.request import EngineStats, Finished, Guidance, Request, SamplingParams

PROMPT = tuple(range(65, 65 + 24))  # three blocks


def test_lanes_blocks_prefixes_and_times_are_told(make_engine: Callable[..., Engine]):
    engine = make_engine(max_num_seqs=2, async_depth=0)
    assert engine.stats == EngineStats()
    for name in ("a", "b", "c"):
        sampling = SamplingParams(max_tokens=6, ignore_eos=True, n=2 if name == "c" else 1)
        engine.add(Request(name, PROMPT, sampling, Guidance()))
    assert engine.stats.num_waiting == 4
    engine.step()
    assert (engine.stats.num_running, engine.stats.num_waiting, engine.stats.num_guided) == (2, 2, 0)
    assert engine.stats.cache_usage == pytest.approx(6 / engine.info.num_blocks)
    ends = []
    while engine.has_work:
        ends += [event for event in engine.step() if isinstance(event, Finished)]
    done = engine.stats
    assert (done.num_running, done.num_waiting, done.cache_usage) == (0, 0, 0)
    assert (done.prefix_queries, done.prefix_hits) == (3 * 24, sum(end.num_cached_tokens for end in ends))
    assert done.prefix_hits > 0
    times = {end.request_id: end.times for end in ends}
    assert all(t is not None and min(t.queue, t.prefill, t.decode) > 0 for t in times.values())
    assert times["c"].queue > times["a"].queue + times["a"].decode, "it waited for one of the others"
