"""How many blocks the cache gets, and that what a GPU would be measured by runs."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import save_random_head

from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.kv_cache import KVCache, LayerShape
from trimtab.server.engine.policy import load_served
from trimtab.server.engine.request import Guidance, Request, SamplingParams
from trimtab.server.engine.startup import blocks_from_free_memory, resolve_num_blocks, run_largest_step
from trimtab.server.engine.warm_up import warm_up
from trimtab.server.rollouts.sample import sample

GIB = 2**30


@pytest.mark.parametrize(
    ("free", "activation", "utilization", "blocks"),
    [
        (80, 0, 1.0, 80),
        (80, 10, 1.0, 70),
        (80, 10, 0.9, 60),  # 100 in all, of which 10 stay free
        (30, 10, 0.75, 0),  # others hold more than we may leave
        (5, 10, 1.0, 0),
    ],
)
def test_the_cache_takes_what_is_free_but_for_a_share_of_the_whole(
    free: int, activation: int, utilization: float, blocks: int
):
    found = blocks_from_free_memory(
        total_bytes=100 * GIB,
        free_bytes=free * GIB,
        activation_bytes=activation * GIB,
        utilization=utilization,
        block_bytes=GIB,
    )
    assert found == blocks


def test_a_gpu_is_measured_only_where_nothing_is_asked_for(llama_folder: Path):
    policy = load_served(llama_folder)
    asked: list[int] = []

    def measure(block_bytes: int) -> int:
        asked.append(block_bytes)
        return 20

    def blocks(**options: object) -> int:
        config = EngineConfig(llama_folder, block_size=8, max_num_seqs=2, **options)  # type: ignore[arg-type]
        return resolve_num_blocks(config.resolved("cuda"), policy, measure)

    assert blocks(num_blocks=30) == 30
    assert blocks(kv_cache_gib=1.0) == 2 * 17 + 1, "no more than all sequences could ever use"
    assert not asked
    assert blocks() == 20
    heads, dim, layers, float32 = 2, 8, 3, 4
    assert asked == [2 * heads * dim * layers * float32 * 8]


def test_the_largest_step_fills_every_row_and_the_token_budget(
    make_engine: Callable[..., Engine], llama_folder: Path, tmp_path: Path
):
    heads = [save_random_head(tmp_path, llama_folder, form, form) for form in ("tied", "lowrank")]
    engine = make_engine(heads=tuple(heads), max_num_batched_tokens=40)
    sizes: list[int] = []
    native = engine.policy.native
    assert native is not None
    run = native.run

    def watched(ids: torch.Tensor, *given: object) -> torch.Tensor:
        sizes.append(len(ids))
        return run(ids, *given)  # type: ignore[arg-type]

    native.run = watched  # type: ignore[method-assign,assignment]
    drawn = run_largest_step(engine.policy, engine.bank, engine.config)
    assert sizes == [40]
    assert drawn.statistics.isfinite().all()
    assert drawn.tokens.shape == (8,)
    assert drawn.top_ids is not None and drawn.base_top_ids is not None and drawn.values is not None


def test_the_warm_up_draws_every_kind_and_leaves_later_replies_as_they_are(
    make_engine: Callable[..., Engine], llama_folder: Path, tmp_path: Path
):
    heads = [save_random_head(tmp_path, llama_folder, form, form) for form in ("tied", "lowrank")]
    request = Request(
        "one",
        tuple(range(40, 60)),
        SamplingParams(max_tokens=8, seed=1, ignore_eos=True),
        Guidance(1.0, (("tied", 1.0),)),
    )
    expected = sample(make_engine(heads=tuple(heads)), [request])[0]
    engine = make_engine(heads=tuple(heads))
    # None, either or both heads, greedy or sampled: fused, then logits wanted or cut, each traced or not;
    # under controllers where a head steers; and one within a grammar.
    num_kinds = 4 * 2 * (1 + 2 * 2) + 3 * 2 + 1
    assert warm_up(engine.sampler, engine.policy, engine.bank, engine.runner.state) == num_kinds
    found = sample(engine, [request])[0]
    assert (found.token_ids, found.summary) == (expected.token_ids, expected.summary)


def test_an_engine_that_is_gone_has_freed_its_cache(make_engine: Callable[..., Engine]):
    engine = make_engine()
    policy, cache = engine.policy, weakref.ref(engine.runner.cache)
    del engine
    gc.collect()
    assert policy.model is not None
    assert cache() is None


def test_copies_of_copies_carry_the_first_ones_content():
    cache = KVCache([LayerShape(1, 2, 2)], 6, 4, torch.float32, torch.device("cpu"))
    for block in range(6):
        cache.keys[0][block] = block
    cache.copy_blocks([(1, 2), (2, 3), (4, 1), (5, 3)])
    assert cache.keys[0][:, 0, 0, 0].tolist() == [0, 4, 1, 5, 4, 5]


def test_a_cache_on_a_cpu_takes_no_memory_for_blocks_that_nobody_wrote_to():
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    cache = KVCache([LayerShape(4, 64, 64)] * 2, 4096, 16, torch.float32, torch.device("cpu"))
    size = sum(x.nbytes for x in (*cache.keys, *cache.values))
    assert size == 2**28
    assert resident() - before < size / 8
    assert all(x.data_ptr() % 64 == 0 for x in (*cache.keys, *cache.values))
    assert not cache.keys[1][7].any()
    cache.store(0, torch.ones(1, 4, 64), torch.ones(1, 4, 64), torch.tensor([5]))
    assert cache.values[0][0, 5].sum() == 256
    assert resident() - before < size / 8
