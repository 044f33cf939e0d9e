from __future__ import annotations

import pytest
import torch
from tilt_oracle import Limits, make_limits
from torch import Tensor

from trimtab.kernels.tilt import BLOCK_V, solve_tilt

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def solve(rows: Limits, backend: str = "triton") -> Tensor:
    limits = {"strength": rows.strength, "kl_cap": rows.kl_cap, "lift": rows.lift}
    limits = {name: values.to(DEVICE) for name, values in limits.items()}
    given = (rows.logits.to(DEVICE), rows.advantage.to(DEVICE), rows.advantage_row.to(DEVICE))
    return solve_tilt(*given, **limits, backend=backend).cpu()


@pytest.mark.parametrize(
    ("num_rows", "vocab_size", "offset"),
    [(36, 3, 0.0), (24, 700, 1e3), (12, BLOCK_V, 0.0), (12, 2 * BLOCK_V + 907, 1e3)],
)
def test_limits_hold_in_float64_and_beta_is_the_reference_s(num_rows: int, vocab_size: int, offset: float):
    rows = make_limits(num_rows, vocab_size, seed=vocab_size, offset=offset)
    beta = solve(rows)
    kl, _ = rows.measure(beta)
    best_kl, _ = rows.measure(rows.solve())
    error = 1e-5 + 1e-4 * kl
    assert (beta.abs() <= rows.strength.abs()).all()
    assert (kl <= rows.kl_cap + error).all()
    assert (kl >= 0.99 * best_kl - error).all()
    torch.testing.assert_close(beta, solve(rows, "reference"), rtol=5e-3, atol=1e-5)


def test_rows_are_bitwise_the_same_in_every_batch():
    rows = make_limits(128, 40)
    whole = solve(rows)
    for size in (1, 2, 3, 7, 16, 17, 33, 64, 65):
        chosen = torch.arange(128)[-size:].flip(0)
        assert torch.equal(solve(rows.rows(chosen)), whole[chosen]), size


def test_limits_that_are_not_given_and_rows_with_nothing_to_solve_are_the_reference_s():
    rows = make_limits(12, 60)
    given = (rows.logits, rows.advantage, torch.arange(12) - 1)
    for limits in ({}, {"kl_cap": torch.arange(12) / 20}, {"lift": torch.arange(12) / 20 - 0.1}):
        arguments = [tensor.to(DEVICE) for tensor in given]
        more = {name: values.to(DEVICE) for name, values in (limits | {"strength": rows.strength}).items()}
        found, expected = (solve_tilt(*arguments, **more, backend=name) for name in ("triton", "reference"))
        torch.testing.assert_close(found, expected, rtol=5e-3, atol=1e-5)
        assert found[0] == 0


def test_a_broken_row_is_not_tilted_and_harms_no_other():
    rows = make_limits(8, BLOCK_V + 50)
    rows = Limits(**{**vars(rows), "kl_cap": torch.full((8,), 0.05)})
    whole = solve(rows)
    rows.logits[3, BLOCK_V + 7], rows.logits[4], rows.logits[5, 0] = torch.nan, -torch.inf, torch.inf
    beta = solve(rows)
    assert beta[3:6].tolist() == [0, 0, 0]
    good = torch.tensor([0, 1, 2, 6, 7])
    assert torch.equal(beta[good], whole[good])


def test_eight_readings_of_a_row_are_enough_for_the_cap_to_hold_wherever_they_end(
    monkeypatch: pytest.MonkeyPatch,
):
    rows = make_limits(24, 200)
    for readings in (2, 3, 5):
        monkeypatch.setattr("trimtab.kernels.tilt.MAX_EVALUATIONS", readings)
        kl, _ = rows.measure(solve(rows))
        assert (kl <= rows.kl_cap + 1e-5 + 1e-4 * kl).all()
