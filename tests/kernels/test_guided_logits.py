from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from trimtab.kernels.guided_logits import GuidedDraw, guided_logits, tilted_logits

pytestmark = pytest.mark.usefixtures("backend")

FIELDS = [field.name for field in dataclasses.fields(GuidedDraw)]


def rows_of(arguments: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    return {
        name: value if name == "advantage" or not isinstance(value, Tensor) else value[rows]
        for name, value in arguments.items()
    }


def without_tilt(arguments: dict[str, Any]) -> dict[str, Any]:
    return {**arguments, "advantage": None, "advantage_row": None, "beta": None}


def equal(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.nan_to_num(nan=1e30), b.nan_to_num(nan=1e30))


@pytest.mark.parametrize("vocab_size", [1, 3, 257, 5003])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_statistics_agree_with_float64(oracle: SimpleNamespace, vocab_size: int, offset: float):
    logits, arguments = oracle.make_batch(30, vocab_size, offset=offset)
    logits[:, 0] = logits[:, 0].clamp(min=-5)
    draw = guided_logits(logits, **arguments, want_entropy=True)
    exact = oracle.measure(logits, arguments)
    at = draw.token[:, None]
    assert (draw.logprob - exact.guided.gather(1, at)[:, 0]).abs().max() <= 1e-4
    assert (draw.base_logprob - exact.base.gather(1, at)[:, 0]).abs().max() <= 1e-4
    assert ((draw.kl - exact.kl).abs() <= 1e-5 + 1e-4 * exact.kl).all()
    assert (draw.kl >= 0).all()
    assert (draw.soft_value - exact.soft_value).abs().max() <= 1e-4
    assert (draw.entropy - exact.entropy).abs().max() <= 1e-4
    assert torch.equal(draw.flip, exact.flip)


def test_an_offset_of_the_logits_costs_no_precision_of_the_kl(oracle: SimpleNamespace):
    logits, arguments = oracle.make_batch(30, 1000)
    logits += 1000
    exact = oracle.measure(logits, arguments)
    assert ((guided_logits(logits, **arguments).kl - exact.kl).abs() <= 1e-5 + 1e-4 * exact.kl).all()


def test_tokens_are_those_of_float64_but_for_near_ties(oracle: SimpleNamespace):
    num_rows, differ = 0, 0
    for seed in range(20):
        logits, arguments = oracle.make_batch(100, 500, seed=seed)
        token = guided_logits(logits, **arguments).token
        exact = oracle.measure(logits, arguments)
        other = token != exact.token
        assert exact.is_near_tie(token)[other].all()
        num_rows, differ = num_rows + len(token), differ + int(other.sum())
    assert differ <= 1e-3 * num_rows


def test_rows_without_a_tilt_are_bitwise_what_they_are_without_guidance(oracle: SimpleNamespace):
    logits, arguments = oracle.make_batch(30, 1000)
    plain = (arguments["advantage_row"] < 0) | (arguments["beta"] == 0)
    assert plain.any()
    assert not plain.all()
    mixed = guided_logits(logits, **arguments, want_entropy=True)
    alone = guided_logits(logits, **without_tilt(arguments), want_entropy=True)
    for name in FIELDS:
        assert equal(getattr(mixed, name)[plain], getattr(alone, name)[plain]), name
    assert torch.equal(mixed.base_logprob[plain], mixed.logprob[plain])
    assert not (mixed.kl[plain] + mixed.soft_value[plain]).any()
    assert not mixed.flip[plain].any()


def test_advantages_that_no_row_uses_change_nothing(oracle: SimpleNamespace):
    logits, arguments = oracle.make_batch(5, 100)
    nobody = {**arguments, "advantage": torch.empty(0, 100), "advantage_row": torch.full((5,), -1)}
    assert equal(
        guided_logits(logits, **nobody).logprob, guided_logits(logits, **without_tilt(arguments)).logprob
    )


def test_a_mask_that_leaves_one_token_draws_it_and_measures_nothing(oracle: SimpleNamespace):
    logits, arguments = oracle.make_batch(12, 50, offset=1e3)
    logits = torch.full_like(logits, -torch.inf)
    logits[:, 17] = -3
    draw = guided_logits(logits, **arguments, want_entropy=True)
    assert (draw.token == 17).all()
    for name in ("logprob", "base_logprob", "kl", "entropy"):
        assert getattr(draw, name).abs().max() < 1e-6, name
    assert not draw.flip.any()


def test_a_broken_row_draws_no_token_and_harms_no_other(oracle: SimpleNamespace):
    logits, arguments = oracle.make_batch(12, 200)
    arguments |= {
        "top_k": torch.full((12,), 5),
        "top_p": torch.full((12,), 0.5),
        "min_p": torch.full((12,), 0.1),
    }
    whole = guided_logits(logits, **arguments)
    logits[3, 7], logits[4], logits[5, 0] = torch.nan, -torch.inf, torch.inf
    arguments["advantage"][arguments["advantage_row"][10], 3] = torch.nan
    broken = torch.isin(torch.arange(12), torch.tensor([3, 4, 5]))
    broken |= (arguments["advantage_row"] == arguments["advantage_row"][10]) & (arguments["beta"] != 0)
    draw = guided_logits(logits, **arguments)
    assert (draw.token[broken] == -1).all()
    assert draw.logprob[broken].isnan().all()
    for name in FIELDS:
        if name != "entropy":
            assert torch.equal(getattr(draw, name)[~broken], getattr(whole, name)[~broken]), name


def test_greedy_takes_the_lowest_id_of_a_tie():
    logits = torch.tensor([[0.0, 2.0, 2.0, 1.0], [3.0, 3.0, 3.0, 3.0]])
    zero = torch.zeros(2, dtype=torch.long)
    draw = guided_logits(logits, seeds=zero, positions=zero, choices=zero, temperature=torch.zeros(2))
    assert draw.token.tolist() == [1, 0]


def test_hints_about_temperatures_change_no_draw(oracle: SimpleNamespace):
    logits, arguments = oracle.make_batch(20, 300)
    for temperature in (torch.zeros(20), torch.ones(20)):
        arguments["temperature"] = temperature
        greedy = not temperature.any()
        hinted = guided_logits(logits, **arguments, any_greedy=greedy, any_sampled=not greedy)
        assert torch.equal(hinted.token, guided_logits(logits, **arguments).token)


def test_temperature_and_truncation_change_the_draw_and_no_statistic(oracle: SimpleNamespace):
    logits, arguments = oracle.make_batch(30, 300)
    hot = guided_logits(logits, **{**arguments, "temperature": torch.full((30,), 3.0)})
    cut = guided_logits(logits, **arguments, top_k=torch.full((30,), 2))
    assert (hot.token != cut.token).any()
    for name in ("kl", "soft_value", "flip", "lse_base", "lse_guided"):
        assert torch.equal(getattr(hot, name), getattr(cut, name)), name


def test_a_tiny_temperature_is_greedy_but_for_the_noise_of_a_tie(oracle: SimpleNamespace):
    logits, arguments = oracle.make_batch(30, 300)
    cold = guided_logits(logits, **{**arguments, "temperature": torch.full((30,), 1e-40)})
    assert torch.equal(
        cold.token, guided_logits(logits, **{**arguments, "temperature": torch.zeros(30)}).token
    )


def test_a_row_draws_the_same_token_whoever_shares_its_batch(oracle: SimpleNamespace):
    logits, arguments = oracle.make_batch(128, 500)
    arguments |= {"top_p": torch.full((128,), 0.9)}
    whole = guided_logits(logits, **arguments)
    for size in (1, 2, 3, 7, 16, 17, 33, 64, 65):
        rows = torch.randperm(128, generator=torch.Generator().manual_seed(size))[:size]
        part = guided_logits(logits[rows], **rows_of(arguments, rows))
        assert torch.equal(part.token, whole.token[rows])


def test_truncated_rows_draw_only_what_the_cuts_leave(oracle: SimpleNamespace):
    logits, arguments = oracle.make_batch(60, 300)
    arguments |= {
        "top_k": torch.arange(60) % 7,
        "top_p": torch.linspace(0.05, 1, 60),
        "min_p": torch.zeros(60),
    }
    token = guided_logits(logits, **arguments).token
    exact = oracle.measure(logits, arguments)
    assert exact.score.gather(1, token[:, None]).isfinite().all()
    assert torch.equal(token, exact.token)


def test_a_masked_token_is_never_drawn():
    logits = torch.full((400, 1000), -torch.inf)
    logits[:, ::97] = -80.0
    logits[:, 500] = 0.0
    ids = torch.arange(400)
    draw = guided_logits(logits, seeds=ids, positions=ids, choices=ids, temperature=torch.full((400,), 100.0))
    assert draw.logprob.isfinite().all()
    assert (logits.gather(1, draw.token[:, None]) > -torch.inf).all()


@pytest.mark.parametrize("beta", [1e-7, -1e-4, 1e-3, 0.03])
def test_a_weak_tilt_has_a_small_kl_and_the_soft_value_of_its_second_order(beta: float):
    generator = torch.Generator().manual_seed(0)
    logits, advantage = torch.randn(1, 4000, generator=generator), torch.randn(1, 4000, generator=generator)
    zero = torch.zeros(1, dtype=torch.long)
    draw = guided_logits(
        logits,
        seeds=zero,
        positions=zero,
        choices=zero,
        temperature=torch.ones(1),
        advantage=advantage,
        advantage_row=zero,
        beta=torch.tensor([beta]),
    )
    p = logits.double().softmax(1)
    variance = (p * advantage.double() ** 2).sum() - (p * advantage.double()).sum() ** 2
    assert draw.soft_value.item() == pytest.approx(float(beta * variance / 2), rel=0.02, abs=1e-6)
    assert 0 <= draw.kl.item() <= beta**2 * variance + 1e-6


def test_tilted_logits_are_centred_and_keep_masks_and_plain_rows(oracle: SimpleNamespace):
    logits, arguments = oracle.make_batch(30, 400)
    tilted = tilted_logits(logits, arguments["advantage"], arguments["advantage_row"], arguments["beta"])
    draw, exact = guided_logits(logits, **arguments), oracle.measure(logits, arguments)
    assert torch.equal(tilted == -torch.inf, logits == -torch.inf)
    plain = (arguments["advantage_row"] < 0) | (arguments["beta"] == 0)
    assert torch.equal(tilted[plain], logits[plain])
    kept = logits > -torch.inf
    assert (tilted - draw.lse_guided[:, None] - exact.guided)[kept].abs().max() < 1e-4
    assert (tilted.log_softmax(1) - exact.guided)[kept].abs().max() < 1e-4


def test_rounding_never_makes_a_kl_negative():
    generator = torch.Generator().manual_seed(0)
    logits, advantage = (torch.randn(300, 50, generator=generator) for _ in range(2))
    ids = torch.arange(300)
    draw = guided_logits(
        logits,
        seeds=ids,
        positions=ids,
        choices=ids,
        temperature=torch.ones(300),
        advantage=advantage,
        advantage_row=ids,
        beta=torch.full((300,), 1e-5),
    )
    assert draw.kl.min() == 0
    assert draw.kl.max() < 1e-6
