"""Linear reward: solves it to convergence, since each of its losses is convex in the weights, so that neither
a learning rate nor a number of epochs decides how good it is."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trimtab.guidance.data.items import number_prompts, prompt_of
from trimtab.guidance.files import whole_file, write_text
from trimtab.guidance.heads.forms import LinearScalar
from trimtab.guidance.losses import Loss
from trimtab.guidance.statistics import mean_by_prompt
from trimtab.guidance.training.checkpoint import remove_checkpoints, writing
from trimtab.guidance.training.objectives.base import Objective
from trimtab.guidance.training.processes import is_first

logger = logging.getLogger(__name__)
L2_GRID = tuple(10 ** (exponent / 2) for exponent in range(4, -9, -1))
"""Strengths that cross-validation tries, strongest first: 100, 31.6, … 1e-4."""
L2_WITHOUT_SIGNAL = 1e6
"""Where nothing can be learned: the weights keep their direction and hardly any length."""
L2_UNTRIED = 1.0
"""Where all rows have one prompt, so that there is nothing to validate on."""
NUM_FOLDS = 5
SOLUTION_FILE, FIT_FILE = "solution.safetensors", "solution.json"
_RISES = 4
_TOLERANCE, _TOLERANCE_OF_FOLDS = 1e-7, 1e-4
_ITEMS_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class Fit:
    """l2: the strength of the penalty. curve: (strength, cross-validated loss) of all that were tried;
    nothing: the loss of a reward without weights. Where the strength was given, neither."""

    l2: float
    curve: tuple[tuple[float, float], ...] = ()
    nothing: float | None = None


@dataclass(frozen=True, slots=True)
class _Batch:
    fold: int
    inputs: dict[str, Tensor]
    count: int


def solve_reward(
    objective: Objective,
    reward: LinearScalar,
    loss: Loss,
    items: Sequence[Any],
    *,
    l2: float | Literal["auto"],
    folder: Path,
    seed: int,
    resume: bool,
) -> Fit:
    """Minimises mean loss + l2/2 ‖w‖² over standardised features, by the weights of `reward`, in place; the
    bias is free. The head is w · h + b as ever: the standardisation is folded back into both.

    l2: "auto" takes the strength of L2_GRID with the least loss in cross-validation, folded by prompt; or
    L2_WITHOUT_SIGNAL where none beats a reward without weights by more than two standard errors.
    folder: the part's; with resume a solution there is only read. Every process solves alike.
    """
    if resume and (folder / FIT_FILE).is_file():
        return _read(reward, folder)
    batches = _collate(objective, items, seed, reward.weight.device)
    mean, scale = _standardise(batches)
    offset, unit = _standardise_targets(batches)
    problem = _Problem(objective, reward.double(), loss)
    fit = _choose(problem, batches, items, seed) if l2 == "auto" else Fit(l2)
    problem.reset()
    problem.minimise(batches, fit.l2, _TOLERANCE)
    with torch.no_grad():
        reward.weight.mul_(unit / scale)
        reward.bias.mul_(unit).add_(offset - reward.weight @ mean)
    reward.float()
    fit = _in_units(fit, unit)
    if is_first():
        _write(reward, fit, folder)
    _tell(fit, len(items))
    return fit


class _Problem:
    """The mean loss of batches as a function of the weights, which are f64 while it is solved."""

    def __init__(self, objective: Objective, reward: LinearScalar, loss: Loss) -> None:
        self.objective, self.reward, self.loss = objective, reward, loss

    @torch.no_grad()
    def reset(self) -> None:
        self.reward.weight.zero_()
        self.reward.bias.zero_()

    def losses(self, batches: Iterable[_Batch]) -> Tensor:
        """One for each item, in the order of the batches."""
        return torch.cat([self.loss(**self.objective(**batch.inputs)[0]).per_example for batch in batches])

    def minimise(self, batches: Sequence[_Batch], l2: float, tolerance: float) -> None:
        """From the weights as they are. l2: inf fits the bias alone. tolerance: of the gradient."""
        parameters: list[nn.Parameter] = [self.reward.bias]
        if math.isfinite(l2):
            parameters.append(self.reward.weight)
        optimiser = torch.optim.LBFGS(
            parameters,
            max_iter=1000,
            tolerance_grad=tolerance,
            tolerance_change=tolerance**2,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            optimiser.zero_grad()
            value = self.losses(batches).mean()
            if math.isfinite(l2):
                value = value + l2 / 2 * self.reward.weight.square().sum()
            value.backward()
            return value

        optimiser.step(closure)
        optimiser.zero_grad()


def _collate(objective: Objective, items: Sequence[Any], seed: int, device: torch.device) -> list[_Batch]:
    folds, batches = _folds(items, seed), []
    for fold in range(NUM_FOLDS):
        own = [item for item, other in zip(items, folds, strict=True) if other == fold]
        for start in range(0, len(own), _ITEMS_AT_ONCE):
            some = own[start : start + _ITEMS_AT_ONCE]
            inputs = {name: tensor.to(device) for name, tensor in objective.collate(some).items()}
            batches.append(_Batch(fold, inputs | {"ends": inputs["ends"].double()}, len(some)))
    return batches


def _folds(items: Sequence[Any], seed: int) -> list[int]:
    """The fold of each item: that of its prompt."""
    prompts = {prompt_of(item) for item in items}
    ranked = sorted(prompts, key=lambda prompt: hashlib.sha256(repr((seed, prompt)).encode()).digest())
    fold = {prompt: place % NUM_FOLDS for place, prompt in enumerate(ranked)}
    return [fold[prompt_of(item)] for item in items]


def _standardise(batches: Sequence[_Batch]) -> tuple[Tensor, Tensor]:
    """Mean and deviation f64[d] of the features, which are taken out of the batches. One that does not vary,
    but for rounding, becomes 0."""
    count = sum(len(batch.inputs["ends"]) for batch in batches)
    mean = torch.stack([batch.inputs["ends"].sum(0) for batch in batches]).sum(0) / count
    squares = torch.stack([(batch.inputs["ends"] - mean).square().sum(0) for batch in batches]).sum(0)
    scale = (squares / count).sqrt()
    varies = scale > 1e-6 * mean.abs()
    scale = scale.where(varies, torch.ones_like(scale))
    for batch in batches:
        batch.inputs["ends"].sub_(mean).div_(scale).mul_(varies)
    return mean, scale


def _standardise_targets(batches: Sequence[_Batch]) -> tuple[float, float]:
    """Mean and deviation of what a regression learns, in whatever units, taken out likewise; 0 and 1 of other
    losses, whose scores are log-odds."""
    if "target" not in batches[0].inputs:
        return 0.0, 1.0
    targets = torch.cat([batch.inputs["target"] for batch in batches]).double()
    offset, unit = targets.mean().item(), targets.std(correction=0).item()
    unit = unit if unit > 1e-9 * abs(offset) else 1.0
    for batch in batches:
        batch.inputs["target"] = (batch.inputs["target"].double() - offset) / unit
    return offset, unit


def _in_units(fit: Fit, unit: float) -> Fit:
    """With squared errors of targets as they were given."""
    curve = tuple((l2, loss * unit**2) for l2, loss in fit.curve)
    return Fit(fit.l2, curve, None if fit.nothing is None else fit.nothing * unit**2)


def _choose(problem: _Problem, batches: Sequence[_Batch], items: Sequence[Any], seed: int) -> Fit:
    """Cross-validation over L2_GRID, each fold's weights going on from the strength before."""
    if len({batch.fold for batch in batches}) < 2:
        return Fit(L2_UNTRIED)
    prompts = _prompts(items, seed)
    states = {batch.fold: (torch.zeros_like(problem.reward.weight), torch.zeros(())) for batch in batches}
    nothing = _validate(problem, batches, states, math.inf)
    curve, best, rises = [], nothing, 0
    for l2 in L2_GRID:
        losses = _validate(problem, batches, states, l2)
        curve.append((l2, losses.mean().item()))
        rises = 0 if losses.mean() < best.mean() else rises + 1
        best = losses if rises == 0 else best
        if rises == _RISES:
            break
    gain, error = mean_by_prompt(nothing - best, prompts)
    is_learnable = gain > 2 * error
    l2 = min(curve, key=lambda point: point[1])[0] if is_learnable else L2_WITHOUT_SIGNAL
    return Fit(l2, tuple(curve), nothing.mean().item())


def _prompts(items: Sequence[Any], seed: int) -> Tensor:
    """The prompt of each item by number i64[N], in the order that batches have."""
    folds = _folds(items, seed)
    ordered = sorted(range(len(items)), key=folds.__getitem__)
    return number_prompts([items[i] for i in ordered])


def _validate(
    problem: _Problem, batches: Sequence[_Batch], states: dict[int, tuple[Tensor, Tensor]], l2: float
) -> Tensor:
    """The loss of each item [N] under weights of the folds that it is not in. states: changed in place."""
    reward, found = problem.reward, []
    for fold, (weight, bias) in states.items():
        with torch.no_grad():
            reward.weight.copy_(weight)
            reward.bias.copy_(bias)
        problem.minimise([batch for batch in batches if batch.fold != fold], l2, _TOLERANCE_OF_FOLDS)
        states[fold] = (reward.weight.detach().clone(), reward.bias.detach().clone())
        with torch.no_grad():
            found.append(problem.losses([batch for batch in batches if batch.fold == fold]).cpu())
    return torch.cat(found)


def _tell(fit: Fit, num_items: int) -> None:
    if fit.nothing is None:
        logger.info("reward: solved on %d rows with L2 %.3g", num_items, fit.l2)
        return
    least = min(loss for _, loss in fit.curve)
    logger.info(
        "reward: solved on %d rows, L2 %.3g by cross-validation over prompts (loss %.4f; of a reward that "
        "knows nothing %.4f)",
        *(num_items, fit.l2, least, fit.nothing),
    )


def _write(reward: LinearScalar, fit: Fit, folder: Path) -> None:
    """The fit comes last: with it the solution is complete."""
    with writing(folder):
        remove_checkpoints(folder)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in reward.state_dict().items()}
        with whole_file(folder / SOLUTION_FILE) as new:
            save_file(tensors, new)
        write_text(folder / FIT_FILE, json.dumps(asdict(fit)))


def _read(reward: LinearScalar, folder: Path) -> Fit:
    reward.load_state_dict(load_file(folder / SOLUTION_FILE))
    return read_fit(folder)


def read_fit(folder: Path) -> Fit:
    """What solve_reward found, of the part's folder."""
    saved = json.loads((folder / FIT_FILE).read_text(encoding="utf-8"))
    return Fit(saved["l2"], tuple((l2, loss) for l2, loss in saved["curve"]), saved["nothing"])
