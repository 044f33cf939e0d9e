"""KL guard: stops a head that leaves the policy behind to please its scorer, by the KL per reply of every
iteration, on disk so that a resumed run remembers it."""

from __future__ import annotations

import json
from pathlib import Path

from torch import nn

from trimtab.guidance.errors import DataError
from trimtab.guidance.files import write_json_lines
from trimtab.guidance.training.checkpoint import load_weights, save_weights, writing
from trimtab.guidance.training.config import OnPolicyConfig
from trimtab.guidance.training.processes import is_first

HISTORY_FILE = "iterations.jsonl"
_WITHIN = "within_kl"
_FASTEST = 1.5


class KlGuard:
    """Iterations are counted from 0; the KL of one is that of the weights that it begins with.

    folder: of the part's checkpoints; iterations.jsonl there holds each iteration's figures.
    """

    def __init__(self, folder: Path, config: OnPolicyConfig, tau: float) -> None:
        self.folder, self.config, self.tau = folder, config, tau
        self._path = folder / HISTORY_FILE
        self._history: list[dict[str, float]] = []

    def begin(self, iteration: int) -> None:
        """Forgets what a run that was stopped did from this iteration on."""
        if iteration == 0 and is_first():
            self._path.unlink(missing_ok=True)
        self._history = _read(self._path)[:iteration] if iteration else []

    def tau_at(self, iteration: int, kl: float) -> float:
        """τ of an iteration whose replies have this KL. While that is above max_kl, τ grows with it, by no
        more than half; then it goes back, to no less than what was configured."""
        before = self._history[iteration - 1]["tau"] if iteration else self.tau
        if self.config.on_max_kl == "stop":
            return before
        factor = min(max(kl / self.config.max_kl, 1 / _FASTEST), _FASTEST)
        return max(self.tau, before * factor)

    def is_passed(self, kl: float) -> bool:
        """Whether training is to end."""
        return self.config.on_max_kl == "stop" and kl > self.config.max_kl

    def record(self, figures: dict[str, float], objective: nn.Module) -> None:
        """An iteration whose weights are within the guard."""
        self._history.append(figures)
        if not is_first():
            return
        if self.config.on_max_kl == "stop":
            save_weights(objective, self.folder / _WITHIN)
        with writing(self.folder):
            write_json_lines(self._path, self._history)

    def restore(self, objective: nn.Module) -> None:
        """Puts back the weights that were within the guard last.

        Raises:
            DataError: none were.
        """
        if not self._path.is_file():
            raise DataError(
                f"the head begins with more than on_policy.max_kl={self.config.max_kl} nats per reply: raise "
                "it, or start from another head"
            )
        load_weights(objective, self.folder / _WITHIN)


def _read(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
