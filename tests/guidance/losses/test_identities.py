"""What holds between a tilt and its base, through the log-ratio that every advantage is trained by."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trimtab.guidance.losses import LOSSES, Loss
from trimtab.guidance.losses.advantage import distil
from trimtab.guidance.losses.common import log_ratio, sum_by_reply
from trimtab.guidance.losses.policy_gradient import grpo, ppo, reinforce
from trimtab.guidance.losses.preference import PAIRS, UNPAIRED, dpo
from trimtab.guidance.training.config import AdvantageConfig

N, V, T = 6, 9, 3
Statistics = tuple[Tensor, Tensor, Tensor]


def close(a: Tensor, b: Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=atol)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def centre(logits: Tensor, advantage: Tensor) -> Tensor:
    return advantage - (logits.softmax(-1) * advantage).sum(-1, keepdim=True)


def measure(logits: Tensor, advantage: Tensor, beta: float) -> Statistics:
    """E_β[Ā], KL(π_β‖π₀) and π_β [V], of logits and advantage [V]."""
    rows = logits.expand(V, V), beta * advantage.expand(V, V), torch.arange(V)
    rho, base = log_ratio(*rows)
    tilt = (rho + base).exp()
    return (tilt * centre(logits, advantage)).sum(), (tilt * rho).sum(), tilt


def test_dpo_on_the_log_ratio_is_dpo_between_two_policies():
    """A policy that remembers two tokens, and its tilt: R of every reply is log π₁(y)/π₀(y), and the odds
    σ(τ(R_w − R_l)) follow from the replies' probabilities alone."""
    logits, advantage = normal(0, 2, 2, 2), 3 * normal(1, 2, 2, 2)  # [y_{t−2}, y_{t−1}, V]
    base, tilt = logits.softmax(-1), (logits + advantage).softmax(-1)
    replies = list(itertools.product(range(2), repeat=4))
    states = [((0, 0, *reply)[t : t + 2], token) for reply in replies for t, token in enumerate(reply)]
    rows = torch.tensor([state for state, _ in states])
    at = rows[:, 0], rows[:, 1]
    tokens = torch.tensor([token for _, token in states])
    ratio = sum_by_reply(log_ratio(logits[at], advantage[at], tokens)[0], torch.full((16,), 4))

    odds = [p[at][range(64), tokens].view(16, 4).prod(1) for p in (tilt, base)]
    close(odds[0].sum(), torch.tensor(1.0, dtype=torch.float64))
    close(ratio, (odds[0] / odds[1]).log())
    better = (odds[0] / odds[1]) ** 0.5
    chosen, rejected = torch.arange(16), torch.arange(16).flip(0)
    want = -(better[chosen] / (better[chosen] + better[rejected])).log()
    close(dpo(ratio[chosen], ratio[rejected], tau=0.5).per_example, want)


@pytest.mark.parametrize("strength", [-1.0, 0.0, 0.3, 1.0, 2.5])
def test_a_strength_moves_along_the_geometric_path_from_base_to_tilt(strength: float):
    """π₀ e^{sΔ}/Z ∝ π₀^{1−s} π₁^s."""
    logits, advantage = normal(0, V), normal(1, V)
    tilt = measure(logits, advantage, strength)[2]
    base, full = logits.softmax(-1), measure(logits, advantage, 1.0)[2]
    path = base ** (1 - strength) * full**strength
    close(tilt, path / path.sum())


def test_a_small_strength_costs_half_its_square_times_the_variance():
    """KL = β²/2 Var(Ā) + β³/3 E[Ā³] + O(β⁴)."""
    logits, advantage, beta = normal(0, V), normal(1, V), 1e-3
    base, centred = logits.softmax(-1), centre(logits, advantage)
    moments = [(base * centred**power).sum() for power in (2, 3)]
    kl = measure(logits, advantage, beta)[1]
    close(kl, beta**2 / 2 * moments[0] + beta**3 / 3 * moments[1], atol=1e-11)
    assert kl.item() == pytest.approx(beta**2 / 2 * moments[0].item(), rel=1e-2)


numbers = st.lists(st.floats(-20, 20), min_size=V, max_size=V)


@settings(deadline=None, max_examples=50)
@given(numbers, numbers, st.lists(st.floats(-5, 5), min_size=2, max_size=5))
def test_more_strength_earns_more_advantage_and_costs_more_kl(
    logits: list[float], advantage: list[float], strengths: list[float]
):
    z, a = (torch.tensor(x, dtype=torch.float64) for x in (logits, advantage))
    earned = [measure(z, a, beta)[0].item() for beta in sorted(strengths)]
    assert all(more >= less - 1e-10 for less, more in itertools.pairwise(earned))
    for sign in (-1, 1):
        costs = [measure(z, a, sign * beta)[1].item() for beta in sorted(map(abs, strengths))]
        assert costs[0] >= -1e-12
        assert all(more >= less - 1e-10 for less, more in itertools.pairwise(costs))


def test_the_slope_of_the_kl_is_strength_times_variance():
    """dKL/dβ = β Var_β[Ā]."""
    logits, advantage, beta, step = normal(0, V), normal(1, V), 1.7, 1e-5
    mean, _, tilt = measure(logits, advantage, beta)
    variance = (tilt * centre(logits, advantage) ** 2).sum() - mean**2
    slope = (
        (measure(logits, advantage, beta + step)[1] - measure(logits, advantage, beta - step)[1]) / 2 / step
    )
    assert slope.item() == pytest.approx(beta * variance.item(), rel=1e-8)


LENGTHS = torch.tensor([3, 3])
HALVES = {"chosen_length": torch.tensor([3]), "rejected_length": torch.tensor([3])}
MASK = torch.ones(2, T, dtype=torch.bool)


def _sums(name: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Losses on R of two replies of three tokens."""
    bound = (PAIRS | UNPAIRED)[name].bind(AdvantageConfig(tau=0.1, flipped=0.1))

    def loss(logits: Tensor, advantage: Tensor, tokens: Tensor) -> Tensor:
        rho, base = (sum_by_reply(x, LENGTHS) for x in log_ratio(logits, advantage, tokens))
        scores = {"chosen": rho[:1], "rejected": rho[1:], **HALVES}
        scores |= {"chosen_base": base[:1], "rejected_base": base[1:]}
        scores |= {"log_ratio": rho, "mismatched": rho.flip(0), "desirable": torch.tensor([True, False])}
        return bound(**scores).per_example

    return loss


def _tokens(function: Loss, **options: object) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Losses on ρ of every token."""

    def loss(logits: Tensor, advantage: Tensor, tokens: Tensor) -> Tensor:
        rho = log_ratio(logits, advantage, tokens)[0].view(2, T)
        columns = (rho, torch.tensor([1.0, -2.0], dtype=torch.float64), *((-rho,) if options else ()))
        return function(*columns, MASK, **options).per_example

    return loss


def _values(name: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Losses on Ā of the token that came."""

    def loss(logits: Tensor, advantage: Tensor, tokens: Tensor) -> Tensor:
        q = centre(logits, advantage)[range(N), tokens].view(2, T)
        columns = (q, torch.ones(2, T), torch.ones(2, T))[: 3 if name == "cd_q" else 2]
        return LOSSES["advantage"][name].function(*columns, MASK).per_example

    return loss


def _distilled(logits: Tensor, advantage: Tensor, tokens: Tensor) -> Tensor:
    centred = centre(logits, advantage)
    return distil(centred, normal(2, N, V), logits.softmax(-1)).per_example


ON_DELTA = {
    **{name: _sums(name) for name in (*PAIRS, *UNPAIRED)},
    "monte_carlo": _values("monte_carlo"),
    "cd_q": _values("cd_q"),
    "distil": _distilled,
    "ppo": _tokens(ppo),
    "rloo": _tokens(reinforce),
    "grpo": _tokens(grpo, tau=0.1),
    "reinforce": _tokens(reinforce),
}


@pytest.mark.parametrize("name", LOSSES["advantage"])
def test_a_function_of_the_state_alone_changes_no_loss_of_an_advantage(name: str):
    logits, advantage, tokens = normal(0, N, V), normal(1, N, V), torch.arange(N)
    shift = torch.linspace(-9, 9, N, dtype=torch.float64)[:, None]
    loss = ON_DELTA[name]
    close(loss(logits, advantage + shift, tokens), loss(logits, advantage, tokens))
    assert not torch.allclose(loss(logits, 2 * advantage, tokens), loss(logits, advantage, tokens))


@pytest.mark.parametrize("name", LOSSES["advantage"])
def test_every_entry_of_an_advantage_receives_gradient_and_each_row_of_it_sums_to_0(name: str):
    logits, advantage = normal(0, N, V), (normal(1, N, V) / 99).requires_grad_()  # within the clip of PPO
    ON_DELTA[name](logits, advantage, torch.arange(N)).sum().backward()
    assert advantage.grad is not None
    assert (advantage.grad != 0).all()
    close(advantage.grad.sum(-1), torch.zeros(N, dtype=torch.float64))


def test_an_untrained_head_costs_what_a_coin_costs():
    zero = torch.zeros(N, V, dtype=torch.float64)
    loss = ON_DELTA["dpo"](normal(0, N, V), zero, torch.arange(N))
    assert loss.tolist() == [math.log(2)]
