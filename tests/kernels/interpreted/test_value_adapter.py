from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trimtab.kernels.value_adapter import BLOCK_B, BLOCK_K, BLOCK_N, value_adapter

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ACTIVATIONS = ("silu", "identity", "silu")
# bf16 products are silently wrong in the interpreter.
DTYPES = [torch.float32, torch.bfloat16] if DEVICE == "cuda" else [torch.float32]


def make(num_rows: int, width: int, rank: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    weights = normal(num_rows, 3) * (torch.arange(3 * num_rows).view(num_rows, 3) % 4 != 0)
    weights[: min(num_rows, BLOCK_B), 1] = 0  # a block of rows in which nobody uses head 1
    h, down, up = normal(num_rows, width), normal(3, rank, width) / width**0.5, normal(3, width, rank)
    given = (h.to(dtype), weights, down.to(dtype), up.to(dtype), normal(3, width), normal(3))
    return tuple(tensor.to(DEVICE) for tensor in given)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("num_rows", "width", "rank"),
    [(1, 8, 1), (BLOCK_B + 3, BLOCK_K + 20, BLOCK_N + 4), (5, 2 * BLOCK_K, BLOCK_N)],
)
def test_columns_and_values_are_the_reference_s(
    num_rows: int, width: int, rank: int, tied: bool, dtype: torch.dtype
):
    h, weights, down, up, value_weight, value_bias = make(num_rows, width, rank, dtype)
    given = (h, weights, down, up if tied else None, ACTIVATIONS, value_weight, value_bias)
    found, expected = value_adapter(*given, backend="triton"), value_adapter(*given, backend="reference")
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_rows_are_bitwise_the_same_in_every_batch(tied: bool):
    h, weights, down, up, value_weight, value_bias = make(128, 40, 6, torch.float32)

    def run(rows: Tensor) -> tuple[Tensor, Tensor | None]:
        chosen = up if tied else None
        return value_adapter(
            h[rows], weights[rows], down, chosen, ACTIVATIONS, value_weight, value_bias, backend="triton"
        )

    whole = run(torch.arange(128))
    for size in (1, 2, 3, 7, 16, 17, 33, 64, 65):
        rows = torch.arange(128)[-size:].flip(0)
        for part, full in zip(run(rows), whole, strict=True):
            assert part is not None
            assert full is not None
            assert torch.equal(part, full[rows])


@pytest.mark.parametrize("tied", [False, True])
def test_a_row_that_does_not_use_a_head_is_not_touched_by_it(tied: bool):
    h, weights, down, up, _, _ = make(BLOCK_B, 40, 6, torch.float32)
    weights[:, 1] = torch.arange(BLOCK_B, device=DEVICE) % 2
    chosen = up if tied else None
    columns, _ = value_adapter(h, weights, down, chosen, ACTIVATIONS, backend="triton")
    down[1] = torch.inf
    changed, _ = value_adapter(h, weights, down, chosen, ACTIVATIONS, backend="triton")
    assert torch.equal(changed[::2], columns[::2])
    assert not changed[1::2].isfinite().all()
