"""Packed weights of the CPU backend against torch, over awkward shapes."""

from __future__ import annotations

import pytest
import torch

from trimtab.kernels.cpu.library import Library
from trimtab.kernels.cpu.weights import PackedWeight

SHAPES = [(1, 1), (7, 5), (32, 32), (33, 576), (100, 31), (65, 1100), (960, 64)]  # N, K
ROWS = (1, 2, 5, 12, 13, 24, 25, 130)
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pack(weight: torch.Tensor, form: str, library: Library) -> PackedWeight:
    if form != "rounding":
        return PackedWeight(weight, form, library)
    return PackedWeight(weight, "bfloat16", library, library.multiplies_bfloat16)


@pytest.mark.parametrize("form", DTYPES)
def test_products_are_those_of_the_stored_numbers(library, form):
    for n, k in SHAPES:
        weight = random(n, k).to(DTYPES[form])
        packed = PackedWeight(weight, form, library)
        for rows in ROWS:
            x = random(rows, k, seed=rows)
            right = x.double() @ weight.double().T
            assert (packed.product(x) - right).abs().max() < 2e-6 * k**0.5 * 4, (n, k, rows)


def test_inputs_are_rounded_where_the_cpu_multiplies_bfloat16(library):
    if not library.multiplies_bfloat16:
        with pytest.raises(ValueError, match="on a CPU that multiplies bfloat16"):
            PackedWeight(random(3, 3), "bfloat16", library, rounds_inputs=True)
        pytest.skip("this instruction set does not")
    for n, k in SHAPES:
        weight = random(n, k).bfloat16()
        packed = PackedWeight(weight, "bfloat16", library, rounds_inputs=True)
        for rows in ROWS:
            x = random(rows, k, seed=rows)
            right = x.bfloat16().double() @ weight.double().T
            assert (packed.product(x) - right).abs().max() < 2e-6 * k**0.5 * 4, (n, k, rows)


@pytest.mark.parametrize("form", [*DTYPES, "q8", "rounding"])
def test_a_rows_product_is_the_same_bits_whatever_rows_are_beside_it(library, form):
    packed = pack(random(70, 1101), form, library)
    x = random(300, 1101, seed=1)
    alone = torch.cat([packed.product(row[None]) for row in x])
    for rows in (2, 3, 7, 12, 24, 25, 33, 64, 121, 300):
        assert torch.equal(packed.product(x[:rows]), alone[:rows])
    assert torch.equal(packed.product(x[5:40]), alone[5:40])


@pytest.mark.parametrize("form", DTYPES)
def test_rows_come_back_as_they_were(library, form):
    weight = random(70, 33).to(DTYPES[form])
    weight[0, :4] = torch.tensor([0.0, 6e-8, -3e-5, 100.0])
    ids = torch.tensor([69, 0, 32, 0])
    assert torch.equal(PackedWeight(weight, form, library).rows(ids), weight[ids].float())
    if form != "float32":  # rounded as torch does, from a wider source
        wide = random(40, 9) * 10.0 ** torch.arange(-8, 1)
        assert torch.equal(
            PackedWeight(wide, form, library).rows(torch.arange(40)), wide.to(DTYPES[form]).float()
        )


def test_q8_is_near_and_exact_in_its_integers(library):
    weight, x = random(45, 70), random(9, 70, seed=2)
    packed = PackedWeight(weight, "q8", library)
    stored = packed.rows(torch.arange(45))
    step = weight.abs().amax() / 127
    assert (stored - weight).abs().max() <= 0.51 * step
    groups = torch.nn.functional.pad(x, (0, 26)).view(9, 3, 32)
    scale = groups.abs().amax(2, keepdim=True) / 127
    rounded = ((groups / scale).round() * scale).view(9, 96)[:, :70]
    assert (packed.product(x) - rounded.double() @ stored.double().T).abs().max() < 1e-4
    assert packed.nbytes < 0.3 * PackedWeight(weight, "float32", library).nbytes * 96 / 70


def test_a_row_that_is_not_finite_stays_alone(library):
    for form in (*DTYPES, "q8", "rounding"):
        packed = pack(random(40, 64), form, library)
        x = random(30, 64)
        right = packed.product(x)
        x[3, 40], x[20, 1] = torch.nan, torch.inf
        got = packed.product(x)
        others = [i for i in range(30) if i not in (3, 20)]
        assert torch.equal(got[others], right[others])
        assert not got[[3, 20]].isfinite().any()


def test_views_are_taken_as_they_lie(best):
    weight, x = random(20, 64)[:, :40], random(5, 50)[:, 3:43]
    out = torch.zeros(5, 30)
    packed = PackedWeight(weight, "float32", best)
    packed.product(x, out[:, 5:25])
    torch.testing.assert_close(out[:, 5:25], x @ weight.T, atol=1e-5, rtol=0)
    assert not out[:, :5].any() and not out[:, 25:].any()
    turned = PackedWeight(weight.T, "float32", best)
    torch.testing.assert_close(turned.product(random(2, 20)), random(2, 20) @ weight, atol=1e-5, rtol=0)


def test_what_cannot_be_packed_is_refused(best):
    with pytest.raises(ValueError, match="do not fit float16"):
        PackedWeight(torch.full((2, 2), 1e5), "float16", best)
    with pytest.raises(ValueError, match="use one of float32"):
        PackedWeight(torch.ones(2, 2), "int4", best)
    with pytest.raises(ValueError, match=r"not \(2,\) of torch.float32"):
        PackedWeight(torch.ones(2), "float32", best)
    with pytest.raises(ValueError, match=r"needs float32 \[M, 2\]"):
        PackedWeight(torch.ones(2, 2), "float32", best).product(torch.ones(1, 3))
