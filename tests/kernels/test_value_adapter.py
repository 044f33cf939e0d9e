from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trimtab.kernels.value_adapter import value_adapter

ROWS, WIDTH, HEADS, RANK = 9, 40, 3, 6
ACTIVATIONS = ("identity", "silu", "silu")


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


H, DOWN, UP = (
    normal(ROWS, WIDTH, seed=0),
    normal(HEADS, RANK, WIDTH, seed=1),
    normal(HEADS, WIDTH, RANK, seed=2),
)
VALUE_WEIGHT, VALUE_BIAS = normal(HEADS, WIDTH, seed=3), normal(HEADS, seed=4)
WEIGHTS = normal(ROWS, HEADS, seed=5) * (torch.arange(ROWS * HEADS).view(ROWS, HEADS) % 4 != 0)


def inner(row: int, head: int) -> Tensor:
    a = DOWN[head].double() @ H[row].double()
    return WEIGHTS[row, head].double() * (F.silu(a) if ACTIVATIONS[head] == "silu" else a)


def test_lowrank_heads_keep_their_columns_apart():
    columns, values = value_adapter(H, WEIGHTS, DOWN, None, ACTIVATIONS)
    expected = torch.stack([torch.cat([inner(row, head) for head in range(HEADS)]) for row in range(ROWS)])
    torch.testing.assert_close(columns, expected.float(), rtol=1e-5, atol=1e-5)
    assert columns.shape == (ROWS, HEADS * RANK)
    assert values is None


def test_tied_heads_share_one_column():
    columns, _ = value_adapter(H, WEIGHTS, DOWN, UP, ACTIVATIONS)
    expected = [sum(UP[head].double() @ inner(row, head) for head in range(HEADS)) for row in range(ROWS)]
    torch.testing.assert_close(columns, torch.stack(expected).float(), rtol=1e-5, atol=1e-4)


def test_values_are_linear_in_h():
    _, values = value_adapter(H, WEIGHTS, DOWN, None, ACTIVATIONS, VALUE_WEIGHT, VALUE_BIAS)
    torch.testing.assert_close(values, H @ VALUE_WEIGHT.T + VALUE_BIAS)


@pytest.mark.parametrize("up", [None, UP])
def test_a_row_that_does_not_use_a_head_is_not_touched_by_it(up: Tensor | None):
    columns, _ = value_adapter(H, WEIGHTS, DOWN, up, ACTIVATIONS)
    weird = DOWN.clone()
    weird[1] = torch.inf
    changed, _ = value_adapter(H, WEIGHTS, weird, up, ACTIVATIONS)
    unused = WEIGHTS[:, 1] == 0
    assert unused.any()
    assert torch.equal(changed[unused], columns[unused])
    assert not changed[~unused].isfinite().all()


@pytest.mark.parametrize("up", [None, UP])
def test_naming_the_active_heads_changes_nothing(up: Tensor | None):
    weights = WEIGHTS.clone()
    weights[:, 1] = 0
    everything, _ = value_adapter(H, weights, DOWN, up, ACTIVATIONS)
    named, _ = value_adapter(H, weights, DOWN, up, ACTIVATIONS, active=(0, 2))
    assert torch.equal(named, everything)


def test_narrow_types_are_computed_in_fp32():
    columns, values = value_adapter(
        H.bfloat16(), WEIGHTS, DOWN.bfloat16(), UP.bfloat16(), ACTIVATIONS, VALUE_WEIGHT, VALUE_BIAS
    )
    wide, _ = value_adapter(
        H.bfloat16().float(), WEIGHTS, DOWN.bfloat16().float(), UP.bfloat16().float(), ACTIVATIONS
    )
    assert columns.dtype == torch.float32
    assert values is not None
    assert values.dtype == torch.float32
    assert torch.equal(columns, wide)


def test_an_activation_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="activation 'gelu' does not exist: use one of identity, silu"):
        value_adapter(H, WEIGHTS, DOWN, None, ("identity", "gelu", "silu"))
