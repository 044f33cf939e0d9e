"""What the tests of the kernels share: random batches, and the tilt and the draw in float64."""

from __future__ import annotations

import os
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from trimtab.kernels import base_statistics, guided_logits, penalties, tilt, truncate
from trimtab.kernels.philox import random_words
from trimtab.kernels.truncate import truncation_threshold

# Triton reads TRITON_INTERPRET when it is first imported, so these run in a process of their own, started by
# test_interpreter.py; natively where there is a GPU.
collect_ignore = []
if os.environ.get("TRITON_INTERPRET") != "1" and not torch.cuda.is_available():
    collect_ignore.append("interpreted")


@dataclass(frozen=True)
class Oracle:
    """A batch's tilt in float64 [B, V], and its draws from the same Philox integers."""

    base: Tensor  # log-probabilities, as is the next
    guided: Tensor
    kl: Tensor
    soft_value: Tensor
    entropy: Tensor
    flip: Tensor
    score: Tensor  # perturbed logits of the tokens that may be drawn

    @property
    def token(self) -> Tensor:
        return self.score.argmax(1)

    def is_near_tie(self, token: Tensor) -> Tensor:
        """Whether each token's score is within 1e-4 of the winner's."""
        best = self.score.amax(1)
        return best - self.score.gather(1, token[:, None])[:, 0] < 1e-4


def measure(logits: Tensor, arguments: dict[str, Any]) -> Oracle:
    z = logits.double()
    base = z.log_softmax(1)
    beta = torch.zeros(len(z), 1, dtype=torch.float64)
    centred = torch.zeros_like(z)
    if arguments.get("advantage") is not None:
        row = arguments["advantage_row"]
        beta = torch.where(row >= 0, arguments["beta"], 0).double()[:, None]
        advantage = arguments["advantage"].double()[row.clamp(min=0)]
        centred = advantage - (base.exp() * advantage).sum(1, keepdim=True)
    tilted = z + beta * centred
    guided = tilted.log_softmax(1)
    log_mean = tilted.logsumexp(1) - z.logsumexp(1)
    kl = (guided.exp() * (beta * centred)).sum(1) - log_mean
    soft_value = torch.where(beta[:, 0] != 0, log_mean / beta[:, 0], 0)

    seeds, positions, choices = (arguments[name] for name in ("seeds", "positions", "choices"))
    words = torch.stack(random_words(seeds, positions, choices, z.shape[1]), 2).flatten(1)[:, : z.shape[1]]
    u = ((words.double() + 0.5) * 2.0**-32).clamp(max=1 - 2.0**-24)
    heat = arguments["temperature"].double()[:, None]
    noise = -(-torch.log1p(-u)).log()
    score = torch.where(heat > 0, tilted / heat.clamp(min=1e-6) + noise, tilted)
    cuts = [arguments.get(name) for name in ("min_p", "top_k", "top_p")]
    if any(cut is not None for cut in cuts):
        threshold = truncation_threshold(
            tilted, arguments["temperature"].double(), *cuts, backend="reference"
        )
        score = score.masked_fill(tilted < threshold[:, None], -torch.inf)
    return Oracle(
        base,
        guided,
        kl,
        soft_value,
        torch.special.entr(base.exp()).sum(1),
        base.argmax(1) != guided.argmax(1),
        score,
    )


def make_batch(
    num_rows: int, vocab_size: int, seed: int = 0, offset: float = 0.0
) -> tuple[Tensor, dict[str, Any]]:
    """Logits and arguments of a batch that mixes temperatures, strengths, masks and rows without a tilt."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    index = torch.arange(num_rows)
    logits = 3 * normal(num_rows, vocab_size)
    logits[index % 3 == 1] = logits[index % 3 == 1].masked_fill(normal(vocab_size) > 0, -torch.inf)
    num_advantages = max(1, num_rows // 2)
    return logits, {
        "seeds": torch.randint(-(2**63), 2**63 - 1, (num_rows,), generator=generator),
        "positions": torch.randint(0, 5000, (num_rows,), generator=generator),
        "choices": index % 2,
        "temperature": torch.tensor([1.0, 0.7, 0.0, 2.0, 1.0])[index % 5],
        "advantage": normal(num_advantages, vocab_size) + offset,
        "advantage_row": index % (num_advantages + 1) - 1,
        "beta": torch.tensor([1.0, -2.0, 0.3, 0.0, 5.0, 0.01])[index % 6],
    }


@pytest.fixture(params=["reference", "cpu"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What runs the ops that the CPU library has, where a test names none."""
    for module in (base_statistics, guided_logits, penalties, tilt, truncate):
        monkeypatch.setattr(module, "choose_backend", lambda _, name=None, *__: name or request.param)
    return request.param


@pytest.fixture(scope="session")
def oracle() -> SimpleNamespace:
    return SimpleNamespace(measure=measure, make_batch=make_batch)
