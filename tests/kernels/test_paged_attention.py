from __future__ import annotations

import pytest
import torch
from paged_batches import SCALE, SHAPES, make_paged_batch

from trimtab.kernels.paged_attention import paged_attention

ROWS = [(1, 1), (1, 16), (5, 5), (1, 0), (1, 257), (41, 41), (3, 0), (13, 300), (2, 257), (33, 70)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("window", [None, 37, 1000])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_a_mixed_batch_is_attention_in_float64(shape: str, window: int | None, softcap: float | None):
    batch = make_paged_batch(ROWS, **SHAPES[shape])
    out = paged_attention(**batch.arguments(), scale=SCALE, window=window, softcap=softcap)
    expected = batch.expected(SCALE, window, softcap)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types_are_computed_in_fp32(dtype: torch.dtype):
    batch = make_paged_batch(ROWS, dtype=dtype)
    out = paged_attention(**batch.arguments(), scale=SCALE)
    expected = batch.expected(SCALE)
    torch.testing.assert_close(out.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_rows_are_the_same_in_every_batch():
    batch = make_paged_batch(ROWS)
    whole = paged_attention(**batch.arguments(), scale=SCALE).split([count for count, _ in ROWS])
    for rows in ([4, 1, 0], [7, 3, 9], [2]):
        part = paged_attention(**batch.pick(rows).arguments(torch.int32), scale=SCALE)
        assert torch.equal(part, torch.cat([whole[row] for row in rows]))


def test_padding_gives_zeros():
    batch = make_paged_batch([(1, 0), (4, 0)])
    assert not paged_attention(**batch.arguments(), scale=SCALE).any()


def test_keys_of_another_type_are_refused():
    arguments = make_paged_batch([(1, 4)]).arguments()
    arguments["key_cache"] = arguments["key_cache"].double()
    with pytest.raises(AssertionError):
        paged_attention(**arguments, scale=SCALE)
