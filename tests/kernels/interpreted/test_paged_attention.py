from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from host_waits import no_host_wait
from paged_batches import SCALE, SHAPES, PagedBatch, make_paged_batch
from torch import Tensor

from trimtab.kernels import paged_attention as module
from trimtab.kernels.paged_attention import paged_attention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# bf16 products are silently wrong in the interpreter.
TOLERANCES = {torch.float32: 5e-6}
if DEVICE == "cuda":
    TOLERANCES |= {torch.bfloat16: 2e-2, torch.float16: 3e-3}

DECODE = [(1, 1), (1, 16), (1, 31), (1, 257), (1, 700)]
PREFILL = [(5, 5), (41, 41), (13, 300), (2, 257), (33, 70)]
PADDING = [(1, 0), (3, 0)]


@pytest.fixture(autouse=True)
def _memory_is_nan_before_it_is_written() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def run(batch: PagedBatch, **more: Any) -> Tensor:
    return paged_attention(**batch.arguments(), scale=SCALE, backend="triton", **more)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(
    ("shape", "block_size", "window", "softcap"),
    [
        ("one head per key head", 8, None, None),
        ("four heads per key head", 16, 37, None),
        ("three heads per key head", 32, 300, 5.0),
        ("all heads on one key head", 16, None, 20.0),
    ],
)
def test_a_mixed_batch_is_attention_in_float64(
    shape: str, block_size: int, window: int | None, softcap: float | None, dtype: torch.dtype
):
    rows = [*DECODE[:3], *PREFILL[:2], *PADDING, *DECODE[3:], *PREFILL[2:]]
    batch = make_paged_batch(rows, **SHAPES[shape], block_size=block_size, dtype=dtype, device=DEVICE)
    out = run(batch, window=window, softcap=softcap)
    assert out.dtype == dtype
    expected = batch.expected(SCALE, window, softcap)
    torch.testing.assert_close(out.cpu().double(), expected, rtol=0, atol=TOLERANCES[dtype])


def test_a_row_too_long_for_the_smallest_chunks_is_cut_into_larger_ones(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MIN_CHUNK", 32)
    context = module._num_splits(2) * 32 + 100
    batch = make_paged_batch([(1, context), (1, context - 90)], device=DEVICE)
    torch.testing.assert_close(run(batch).cpu().double(), batch.expected(SCALE), rtol=0, atol=5e-6)


def test_block_tables_may_be_int32():
    batch = make_paged_batch([(1, 20), (4, 9)], device=DEVICE)
    arguments = batch.arguments(torch.int32)
    out = paged_attention(**arguments, scale=SCALE, backend="triton")
    assert torch.equal(out, run(batch))


@pytest.mark.parametrize("window", [None, 50])
def test_rows_are_bitwise_the_same_in_every_batch(window: int | None):
    batch = make_paged_batch([*DECODE, *PREFILL, *PADDING], device=DEVICE)
    whole = run(batch, window=window).split([len(query) for query in batch.queries])
    decode_alone, prefill_alone = [4, 1, 3], [9, 5, 7]
    for rows in (decode_alone, prefill_alone, [6, 10, 2, 8], [11, 0], [4]):
        part = run(batch.pick(rows), window=window)
        assert torch.equal(part, torch.cat([whole[row] for row in rows])), rows


@pytest.mark.parametrize(
    ("splits_keys", "chunks"),
    [(True, [(0, 33), (33, 35), (35, 90)]), (False, [(0, 1), (1, 33), (33, 34), (34, 90)])],
)
def test_chunks_of_a_prompt_are_bitwise_the_whole_prompt(splits_keys: bool, chunks: list[tuple[int, int]]):
    batch = make_paged_batch([(90, 150)], device=DEVICE)
    for window in (None, 40):
        whole = run(batch, window=window)
        for first, stop in chunks:
            part = run(batch.chunk(0, first, stop), window=window, splits_keys=splits_keys)
            assert torch.equal(part, whole[first:stop])


def test_tokens_of_no_row_give_zeros():
    batch = make_paged_batch([(3, 20), (1, 5)], device=DEVICE)
    arguments = batch.arguments()
    arguments["query"] = torch.cat((arguments["query"], torch.full_like(arguments["query"], math.nan)))
    out = paged_attention(**arguments, scale=SCALE, backend="triton")
    assert torch.equal(out[:4], run(batch))
    assert not out[4:].any()


def test_a_launch_waits_for_nothing_on_the_device():
    arguments = make_paged_batch([(1, 20), (4, 9)], device=DEVICE).arguments()
    paged_attention(**arguments, scale=SCALE, backend="triton")  # compiles
    with no_host_wait():
        paged_attention(**arguments, scale=SCALE, backend="triton")


def test_blocks_that_a_window_has_left_behind_are_not_read():
    window = 40
    batch = make_paged_batch([(1, 700), (3, 500)], device=DEVICE)
    whole = run(batch, window=window)
    for table, context in zip(batch.tables, (700, 500), strict=True):
        left = table[: (context - 3 - window - 64) // 8].to(DEVICE)
        batch.key_cache[left], batch.value_cache[left] = math.nan, math.nan
    assert torch.equal(run(batch, window=window), whole)


@pytest.mark.skipif(DEVICE == "cpu", reason="CUDA graphs need a GPU")
def test_a_captured_launch_serves_rows_of_other_lengths():
    arguments = make_paged_batch([(1, 700), (1, 90), (1, 300)], device=DEVICE).arguments()
    contexts = arguments["context_lens"].clone()
    expected = paged_attention(**arguments, scale=SCALE, backend="triton")
    arguments["context_lens"].copy_(torch.tensor([1, 0, 2]))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = paged_attention(**arguments, scale=SCALE, backend="triton")
    arguments["context_lens"].copy_(contexts)
    graph.replay()
    assert torch.equal(out, expected)
