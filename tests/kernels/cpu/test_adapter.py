"""Adapters of the CPU backend against torch."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import silu

from trimtab.kernels.cpu.adapter import Adapter
from trimtab.kernels.cpu.weights import PackedWeight


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("has_silu", [True, False])
def test_an_adapter_is_two_products_weighted_by_row(library, has_silu):
    down, up = random(37, 70), random(101, 37, seed=1)
    adapter = Adapter(
        PackedWeight(down, "float32", library), PackedWeight(up, "float32", library), silu=has_silu
    )
    for rows in (1, 5, 13, 40):
        h, weights = random(rows, 90, seed=rows)[:, :70], random(rows, 3, seed=2)[:, 1]
        inner = h.double() @ down.double().T
        right = (silu(inner) if has_silu else inner) @ up.double().T * weights[:, None]
        together = adapter(h, weights)
        assert (together - right).abs().max() < 2e-4
        alone = [adapter(h[i : i + 1], weights[i : i + 1]) for i in range(rows)]
        assert torch.equal(torch.cat(alone), together)


def test_a_row_without_weight_is_zero_whatever_it_holds(best):
    adapter = Adapter(
        PackedWeight(random(8, 20), "float32", best), PackedWeight(random(50, 8), "bfloat16", best), silu=True
    )
    h = random(3, 20)
    h[1] = torch.nan
    found = adapter(h, torch.tensor([1.0, 0.0, 2.0]))
    assert not found[1].any() and found[[0, 2]].isfinite().all() and found[2].any()


def test_matrices_that_do_not_fit_are_named(best):
    down, up = PackedWeight(random(8, 20), "float32", best), PackedWeight(random(50, 9), "float32", best)
    with pytest.raises(ValueError, match=r"\(8, 20\) and \(50, 9\) do not"):
        Adapter(down, up, silu=True)
    fits = Adapter(down, PackedWeight(random(50, 8), "float32", best), silu=True)
    with pytest.raises(ValueError, match=r"float32 \[G, 20\]"):
        fits(random(3, 19), torch.ones(3))
