"""Warm-up: draws padding rows of every kind before the first request, in whose time kernels would compile."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterator

import numpy as np
import torch
from tqdm.auto import tqdm

from trimtab.guidance.controllers.base import Controller
from trimtab.guidance.controllers.entropy_gate import EntropyGate
from trimtab.guidance.controllers.max_kl import MaxKL
from trimtab.guidance.heads.bank import HeadBank
from trimtab.kernels.dispatch import MAX_FUSED_GUIDED_ROWS, MAX_FUSED_ROWS, Compilation, listen
from trimtab.kernels.guided_head import ROW_TILES
from trimtab.server.engine.batch import DrawInputs
from trimtab.server.engine.device_copy import index_tensor
from trimtab.server.engine.model_runner import Hidden
from trimtab.server.engine.policy import ServedPolicy
from trimtab.server.engine.request import Guidance, Request, SamplingParams
from trimtab.server.engine.row_needs import RowNeeds
from trimtab.server.engine.sampler import Sampler
from trimtab.server.engine.step_state import StepState

logger = logging.getLogger(__name__)

GREEDY = {"sampled": 1.0, "greedy": 0.0}  # temperatures
# What sends a batch past the fused head, each another program of the draw.
CONTROLLERS = (MaxKL(1.0), EntropyGate(1.0))  # of all that there are, each has programs of one of these
NEEDS_LOGITS = {"logprobs": {"logprobs": 1}, "truncated": {"top_p": 0.9, "top_k": 50, "min_p": 0.01}}


@torch.inference_mode()
def warm_up(sampler: Sampler, policy: ServedPolicy, bank: HeadBank, state: StepState) -> int:
    """Draw as serving can; no lane's state changes. Returns how many draws.

    From then on a program that is compiled is logged: its request waited for it.
    """
    draws = list(_draws(bank, state.padding_slot))
    for rows, needs in tqdm(draws, desc="warming up draws", unit="draw", leave=False):
        # All these rows share one slot, and the sampler goes on with what it knows of rows whose slots and
        # version stay.
        state.version += 1
        masks = [np.full(-(-policy.vocab_size // 32), -1, np.int32)] * rows if needs.has_mask else ()
        sampler.draw(_padding(policy, state, rows), [needs] * rows, masks=masks)
    listen(_log)
    return len(draws)


def _draws(bank: HeadBank, most: int) -> Iterator[tuple[int, RowNeeds]]:
    """Numbers of rows, at most so many, and what they need: every tile of the fused head, then the rest."""
    for steering, temperature in itertools.product(_steerings(bank), GREEDY.values()):
        most_fused = min(most, MAX_FUSED_GUIDED_ROWS if steering else MAX_FUSED_ROWS)
        for rows in sorted({min(size, most_fused) for size in ROW_TILES}):
            yield rows, _needs(bank, SamplingParams(temperature=temperature), steering, trace=False)
        if steering:
            sampling = SamplingParams(temperature=temperature)
            yield 1, _needs(bank, sampling, steering, trace=False, controllers=CONTROLLERS)
        for needs, trace in itertools.product(NEEDS_LOGITS.values(), (False, True)):
            sampling = SamplingParams(temperature=temperature, **needs)  # type: ignore[arg-type]
            yield 1, _needs(bank, sampling, steering, trace)
    yield 1, dataclasses.replace(_needs(bank, SamplingParams(), (), trace=False), has_mask=True)


def _steerings(bank: HeadBank) -> Iterator[tuple[str, ...]]:
    """Heads that steer together: none, any number of low-rank ones, with and without a tied one."""
    forms: dict[str, list[str]] = {"tied": [], "lowrank": []}
    for manifest in bank.manifests:
        if manifest.parts.advantage is not None:
            forms[manifest.parts.advantage.form].append(manifest.name)
    for tied in ((), tuple(forms["tied"][:1])) if forms["tied"] else ((),):
        for count in range(len(forms["lowrank"]) + 1):
            yield (*tied, *forms["lowrank"][:count])


def _needs(
    bank: HeadBank,
    sampling: SamplingParams,
    steering: tuple[str, ...],
    trace: bool,
    controllers: tuple[Controller, ...] = (),
) -> RowNeeds:
    heads = tuple((name, 1.0) for name in steering)
    guidance = Guidance(float(bool(heads)), heads, trace, controllers)
    return RowNeeds.of(Request("warm-up", (0,), sampling, guidance), bank)


def _padding(policy: ServedPolicy, state: StepState, rows: int) -> Hidden:
    host_slots, host_positions = [state.padding_slot] * rows, [0] * rows
    slots, positions = (index_tensor(values, state.device) for values in (host_slots, host_positions))
    draws = DrawInputs(slots, positions, host_slots, host_positions)
    h = torch.zeros(rows, policy.lm_head.shape[1], dtype=policy.dtype, device=state.device)
    logits = None if policy.has_linear_tail else h.new_zeros(rows, policy.vocab_size)
    return Hidden(h, logits, draws)


def _log(compilation: Compilation) -> None:
    if not compilation.is_cached:
        logger.warning(
            "kernel %s was compiled while serving, in %.1f s: warm-up does not know this launch",
            compilation.kernel,
            compilation.seconds,
        )
