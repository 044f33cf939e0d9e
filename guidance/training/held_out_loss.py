"""The loss on held-out rows: of a part as it is, and of one that knows nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trimtab.guidance.losses import Loss
from trimtab.guidance.training.objectives.base import Objective


@dataclass(frozen=True)
class HeldOutLoss:
    """items: for objective.collate; not empty. batch_size: of items whose features are held at once."""

    objective: Objective
    loss: Loss
    items: Sequence[Any]
    batch_size: int

    def __post_init__(self) -> None:
        self.objective.prepare_held_out(self.items)

    @torch.no_grad()
    def per_item(self, process: int = 0, num_processes: int = 1) -> Tensor:
        """The loss of each item [N], on the CPU; of several processes each takes its share, and the others'
        items are 0."""
        found = torch.zeros(len(self.items))
        starts = range(0, len(self.items), self.batch_size)
        for start in starts[process::num_processes]:
            some = self.items[start : start + self.batch_size]
            batch = self.objective.collate(some)
            scores, _ = self.objective(**{k: x.to(self.objective.policy.device) for k, x in batch.items()})
            found[start : start + len(some)] = self.loss(**scores).per_example.cpu()
        return found


@contextmanager
def knowing_nothing(objective: Objective, items: Sequence[Any]) -> Iterator[None]:
    """Within, the part that is trained says the same of everything: an advantage and a reward 0, a value the
    mean return of the items, which are those that are trained on."""
    trained = {name: parameter.detach().clone() for name, parameter in objective.named_parameters()}
    objective.forget(items)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in objective.named_parameters():
                parameter.copy_(trained[name])
