from __future__ import annotations

import pytest
import torch
from tilt_oracle import Limits, make_limits
from torch import Tensor

from trimtab.kernels.tilt import solve_tilt

pytestmark = pytest.mark.usefixtures("backend")


def solve(rows: Limits) -> Tensor:
    return solve_tilt(
        rows.logits,
        rows.advantage,
        rows.advantage_row,
        strength=rows.strength,
        kl_cap=rows.kl_cap,
        lift=rows.lift,
    )


def changed(rows: Limits, **values: Tensor) -> Limits:
    return Limits(**{**vars(rows), **values})


@pytest.mark.parametrize("vocab_size", [2, 3, 257, 5003])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_limits_hold_in_float64_and_what_binds_is_used_up(vocab_size: int, offset: float):
    rows = make_limits(96, vocab_size, seed=vocab_size, offset=offset)
    beta, best = solve(rows), rows.solve()
    (kl, lift), (best_kl, _) = rows.measure(beta), rows.measure(best)
    error = 1e-5 + 1e-4 * kl
    assert (beta * rows.strength >= 0).all()
    assert (beta.abs() <= rows.strength.abs()).all()
    assert (kl <= rows.kl_cap + error).all()
    # Eight readings do not do for every row of two or three tokens: theirs are the sharpest knees.
    used_up = kl >= 0.99 * best_kl - error
    assert used_up.double().mean() >= (1 if vocab_size > 3 else 0.97)
    lifted = used_up & (best.abs() < 0.99 * rows.strength.abs()) & (best_kl < 0.99 * rows.kl_cap)
    assert lifted.sum() > 10
    assert (lift >= rows.lift * (1 - 1e-4) - 1e-5)[lifted].all()
    assert (lift <= rows.lift * 1.01 + 1e-5)[lifted].all()


def test_rows_that_nothing_binds_keep_their_strength_bitwise():
    rows = make_limits(24, 100)
    off = torch.full((24,), torch.inf)
    assert torch.equal(solve(changed(rows, kl_cap=off, lift=off)), rows.strength)
    assert torch.equal(solve(changed(rows, kl_cap=0 * off.clamp(max=1) + 1e6, lift=off)), rows.strength)
    assert torch.equal(solve(changed(rows, kl_cap=off, lift=0 * off.clamp(max=1) + 1e6)), rows.strength)
    alone = solve_tilt(rows.logits, rows.advantage, rows.advantage_row, strength=rows.strength)
    assert torch.equal(alone, rows.strength)


def test_a_cap_of_nothing_and_a_lift_that_the_base_has_are_no_tilt():
    rows = make_limits(24, 100)
    off, zero = torch.full((24,), torch.inf), torch.zeros(24)
    for limits in ({"kl_cap": zero, "lift": off}, {"kl_cap": off, "lift": zero}, {"lift": -off}):
        assert not solve(changed(rows, **limits)).any()


def test_rows_without_an_advantage_or_without_strength_are_not_tilted():
    rows = make_limits(24, 100)
    nobody = changed(rows, advantage_row=torch.full((24,), -1))
    assert not solve(nobody).any()
    assert not solve(changed(rows, strength=torch.zeros(24))).any()
    assert not solve(changed(nobody, advantage=torch.empty(0, 100))).any()


def test_the_smallest_strength_that_any_limit_allows_is_taken():
    rows = make_limits(48, 300)
    off = torch.full((48,), torch.inf)
    kl, lift = rows.measure(rows.strength)
    rows = changed(rows, kl_cap=(0.4 * kl).float(), lift=(0.4 * lift).float())
    both = solve(rows).abs()
    alone = torch.minimum(solve(changed(rows, lift=off)).abs(), solve(changed(rows, kl_cap=off)).abs())
    assert ((both / alone - 1).abs() < 0.01).all()


@pytest.mark.parametrize("cap", [1e-8, 1e-6, 1e-4, 1e-2])
def test_small_caps_are_used_up_beyond_the_rounding_of_two_normalisers(cap: float):
    rows = make_limits(24, 1000)
    off = torch.full((24,), torch.inf)
    kl, _ = rows.measure(solve(changed(rows, kl_cap=torch.full((24,), cap), lift=off)))
    assert (kl <= 1.003 * cap).all()
    assert (kl >= 0.98 * cap).all()


def test_a_rare_token_that_the_head_prefers_does_not_break_the_cap():
    # KL leaps from nearly 0 to 8 nats where β A of the rare token overtakes its rarity.
    logits, advantage = torch.zeros(8, 500), torch.zeros(1, 500)
    logits[:, 7], advantage[:, 7] = -2, 12
    zero, off = torch.zeros(8, dtype=torch.long), torch.full((8,), torch.inf)
    cap = torch.logspace(-5, 0.8, 8)
    rows = Limits(logits, advantage, zero, torch.full((8,), 10.0), cap, off)
    kl, _ = rows.measure(solve(rows))
    assert (kl <= cap + 1e-5 + 1e-4 * cap).all()
    assert (kl >= 0.98 * cap - 1e-5).all()


def test_a_mask_that_leaves_one_token_leaves_nothing_to_limit():
    rows = make_limits(8, 50, offset=1e3)
    logits = torch.full_like(rows.logits, -torch.inf)
    logits[:, 17] = -3
    rows = changed(rows, logits=logits, kl_cap=torch.full((8,), 0.01), lift=torch.full((8,), 1.0))
    assert torch.equal(solve(rows), rows.strength)


def test_masked_tokens_count_for_nothing():
    rows = make_limits(24, 200)
    short = changed(rows, logits=rows.logits[:, :150], advantage=rows.advantage[:, :150])
    logits = rows.logits.clone()
    logits[:, 150:] = -torch.inf
    torch.testing.assert_close(solve(changed(rows, logits=logits)), solve(short), rtol=1e-4, atol=1e-6)


def test_a_broken_row_is_not_tilted_and_harms_no_other():
    rows = make_limits(24, 200)
    rows = changed(rows, kl_cap=torch.full((24,), 0.05))
    whole = solve(rows)
    logits = rows.logits.clone()
    logits[3, 5], logits[4], logits[5, 0] = torch.nan, -torch.inf, torch.inf
    beta = solve(changed(rows, logits=logits))
    assert beta[3:6].tolist() == [0, 0, 0]
    good = (torch.arange(24) < 3) | (torch.arange(24) > 5)
    assert torch.equal(beta[good], whole[good])


def test_rows_are_solved_alike_whoever_shares_their_batch():
    rows = make_limits(64, 400)
    whole = solve(rows)
    for size in (1, 2, 3, 7, 16, 17, 33):
        chosen = torch.randperm(64, generator=torch.Generator().manual_seed(size))[:size]
        assert torch.equal(solve(rows.rows(chosen)), whole[chosen])


def test_a_row_alone_is_solved_to_the_bits_it_has_among_others_for_any_number_of_threads():
    """Also where a sum over it would be split among threads."""
    rows = make_limits(3, 33_000)
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 4):
            torch.set_num_threads(number)
            found.append(solve(rows))
            found.append(torch.cat([solve(rows.rows(torch.tensor([i]))) for i in range(3)]))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(beta, found[0]) for beta in found)
