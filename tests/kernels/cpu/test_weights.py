"""Packed weights of the CPU backend against torch, over awkward shapes."""

from __future__ import annotations

import pytest
import torch

from trimtab.kernels.cpu.library import Library
from trimtab.kernels.cpu.weights import PackedWeight, is_exact

SHAPES = [(1, 1), (7, 5), (32, 32), (33, 576), (100, 31), (65, 1100), (960, 64)]  # N, K
ROWS = (1, 2, 5, 12, 13, 24, 25, 130)
FORMS = ("float32", "float16", "bfloat16", "rounds bfloat16", "q8", "rounds q8", "q4", "rounds q4")
BLOCKS = {"Q8_0": "q8", "Q4_1": "q4", "Q4_0": "q4"}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pack(weight: torch.Tensor, form: str, library: Library) -> PackedWeight:
    """ "rounds q8" is "q8" with rounded inputs."""
    *rounds, format = form.split()
    rounds_inputs = bool(rounds) and (format != "bfloat16" or library.multiplies_bfloat16)
    return PackedWeight(weight, format, library, rounds_inputs)


def grouped(kind: str, n: int, k: int) -> torch.Tensor:
    """What a GGUF holds in a kind of block, [n, k]."""
    generator = torch.Generator().manual_seed(0)
    groups = k // 32
    scale, least = (torch.rand(2, n, groups, 1, generator=generator) * 0.02).half().float()
    if kind == "Q8_0":
        numbers = torch.randint(-127, 128, (n, groups, 32), generator=generator)
        numbers[..., 0] = 127 * (1 - 2 * torch.randint(2, (n, groups), generator=generator))
        values = scale * numbers
    else:
        numbers = torch.randint(0, 16, (n, groups, 32), generator=generator)
        numbers[::3] = numbers[::3].clamp(5, 12)  # not all sixteen are used
        values = scale * numbers - (7 * least).half() if kind == "Q4_1" else scale * (8 - numbers)
    return values.view(n, k)


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


@pytest.mark.parametrize("form", FORMS)
def test_a_rows_product_is_the_same_bits_whatever_rows_are_beside_it(library, form):
    packed = pack(random(70, 1101), form, library)
    x = random(300, 1101, seed=1)
    alone = torch.cat([packed.product(row[None]) for row in x])
    for rows in (0, 2, 3, 7, 12, 24, 25, 33, 64, 121, 300):
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


@pytest.mark.parametrize("kind", BLOCKS)
def test_blocks_of_a_gguf_stay_what_they_are_and_multiply_as_their_floats_do(library, kind):
    for n, k in ((1, 32), (33, 64), (100, 576), (65, 1120)):
        weight = grouped(kind, n, k)
        if k > 32:  # groups of one number
            weight[0, :32] = 0
            weight[-1, 32:64] = torch.tensor(0.00123).half().float() * (127.0 if kind == "Q8_0" else 1.0)
        assert is_exact(weight, BLOCKS[kind], library)
        packed, floats = (PackedWeight(weight, form, library) for form in (BLOCKS[kind], "float32"))
        assert torch.equal(packed.rows(torch.arange(n)), weight)
        for rows in ROWS:
            x = random(rows, k, seed=rows)
            assert torch.equal(packed.product(x), floats.product(x)), (n, k, rows)
    assert packed.nbytes <= floats.nbytes * {"q8": 1.07, "q4": 0.64}[BLOCKS[kind]] / 4


@pytest.mark.parametrize(("form", "levels"), [("q8", 254), ("q4", 15)])
def test_other_numbers_go_to_the_nearest_of_their_group(library, form, levels):
    weight, x = random(45, 70), random(9, 70, seed=2)
    assert not is_exact(weight, form, library)
    packed, rounding = pack(weight, form, library), pack(weight, f"rounds {form}", library)
    stored = packed.rows(torch.arange(45))
    assert is_exact(stored[:, :64].contiguous(), form, library)
    groups = torch.nn.functional.pad(weight, (0, 26), value=torch.nan).view(45, 3, 32)
    most, least = groups.nan_to_num(-9).amax(2), groups.nan_to_num(9).amin(2)
    width = 2 * torch.maximum(most, -least) if form == "q8" else most - least
    assert (
        (stored - weight).abs()
        <= 0.502 * width.repeat_interleave(32, 1)[:, :70] / levels + 2e-3 * (form == "q4")
    ).all()
    floats = PackedWeight(stored, "float32", library)
    assert torch.equal(packed.product(x), floats.product(x))
    groups = torch.nn.functional.pad(x, (0, 26)).view(9, 3, 32)
    scale = groups.abs().amax(2, keepdim=True) / 127
    rounded = ((groups / scale).round() * scale).view(9, 96)[:, :70]
    assert (rounding.product(x) - rounded.double() @ stored.double().T).abs().max() < 1e-4


def test_what_is_exact_is_told_of_the_numbers_alone(library):
    weight = grouped("Q4_1", 40, 64)
    assert is_exact(weight.half().float(), "float16", library)
    assert not is_exact(weight, "bfloat16", library)
    assert not is_exact(weight, "q8", library)
    for row, column in ((0, 0), (17, 31), (39, 63)):
        other = weight.clone()
        other[row, column] += 1e-4
        assert not is_exact(other, "q4", library)
    assert not is_exact(torch.full((3, 32), torch.nan), "q4", library)
    assert not is_exact(torch.full((3, 32), torch.inf), "q8", library)
    assert is_exact(weight.T[:32].contiguous().T, "float32", library)


def test_a_row_that_is_not_finite_stays_alone(library):
    for form in FORMS:
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
    for form, beyond in (("q8", 1e7), ("q4", 4e4), ("q4", torch.nan)):
        with pytest.raises(ValueError, match=f"do not fit {form}"):
            PackedWeight(torch.full((2, 2), beyond), form, best)
    with pytest.raises(ValueError, match="use one of float32"):
        PackedWeight(torch.ones(2, 2), "int4", best)
    with pytest.raises(ValueError, match=r"not \(2,\) of torch.float32"):
        PackedWeight(torch.ones(2), "float32", best)
    with pytest.raises(ValueError, match=r"needs float32 \[M, 2\]"):
        PackedWeight(torch.ones(2, 2), "float32", best).product(torch.ones(1, 3))
