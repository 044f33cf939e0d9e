"""From items to what a loss takes: one module per part of a head and kind of rows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.guidance.features.source import FeatureSource
from trimtab.guidance.heads.forms import Head
from trimtab.guidance.training.config import TrainConfig

Scores = dict[str, Tensor]


class Objective(nn.Module):
    """Its parameters are those that are trained: of one part of `head`, and of what only training needs.

    collate(items) -> a batch by name, features fetched through `features`; forward(**batch) -> the loss's
    arguments by name, and metrics: scalars without gradient, averages over the batch.
    """

    def __init__(self, head: Head, config: TrainConfig, features: FeatureSource) -> None:
        super().__init__()
        self.config = config
        self.features = features
        self.policy = features.policy

    def prepare(self, items: Sequence[Any]) -> None:
        """What is done once, before training, with all items that are trained on."""

    def figures(self) -> Scores:
        """Measured on the last batch where figures are logged: what would cost too much in every step."""
        return {}

    def prepare_held_out(self, items: Sequence[Any]) -> None:
        """What is done once with items whose loss is only measured."""

    def forget(self, items: Sequence[Any]) -> None:
        """Makes the trained part one that says the same of everything: an advantage and a reward 0, a value
        what fits the items, which are trained on, best."""
        self.clear()
        self.prepare(items)

    @torch.no_grad()
    def clear(self) -> None:
        """All that is trained says 0."""
        for name, parameter in self.named_parameters():
            if name.rpartition(".")[2] in ("up", "weight", "bias"):
                parameter.zero_()

    @abstractmethod
    def collate(self, items: Sequence[Any]) -> dict[str, Tensor]: ...
