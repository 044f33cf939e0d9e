"""Log of a part's training: reads losses by step from transformers' Trainer, says when to stop, shows
them on a bar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerState, TrainingArguments

HELD_OUT, NOTHING = "held_out_loss", "loss_of_nothing"
Points = tuple[tuple[int, float], ...]
_SHOWN = {"loss": "loss", HELD_OUT: "held out", NOTHING: "knowing nothing"}


@dataclass(frozen=True, slots=True)
class TrainingLog:
    """train, held_out: (step, loss), ascending. nothing: the held-out loss of a head that knows nothing."""

    train: Points = ()
    held_out: Points = ()
    nothing: float | None = None

    @classmethod
    def of(cls, history: Sequence[Mapping[str, Any]]) -> TrainingLog:
        """history: the Trainer's log_history."""
        nothing = [row[NOTHING] for row in history if NOTHING in row]
        return cls(_points(history, "loss"), _points(history, HELD_OUT), nothing[0] if nothing else None)

    @property
    def best_step(self) -> int | None:
        """The step with the lowest held-out loss, the first of equals; None where none was measured."""
        return min(self.held_out, key=lambda point: point[1])[0] if self.held_out else None

    def has_stopped(self, patience: int) -> bool:
        """Whether the last `patience` held-out losses were none of them lower than the lowest before. 0:
        never.

        By hand: 3, 1, 2, 2 with patience 2: yes; 3, 1, 2: no.
        """
        losses = [loss for _, loss in self.held_out]
        return 0 < patience < len(losses) and losses.index(min(losses)) < len(losses) - patience


def _points(history: Sequence[Mapping[str, Any]], name: str) -> Points:
    return tuple((row["step"], row[name]) for row in history if name in row)


class LossBar(TrainerCallback):  # type: ignore[misc]  # transformers has no type stubs
    """A progress bar that shows the losses; on what is no terminal nothing moves. part: what it is called."""

    def __init__(self, part: str) -> None:
        self.part = part
        self.losses: dict[str, str] = {}
        self.bar: Any = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self.bar = tqdm(
                total=state.max_steps, initial=state.global_step, desc=self.part, unit="step", disable=None
            )
            for row in state.log_history:
                self._show(row)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: Any, **_: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: Any, logs: Mapping[str, float], **_: Any
    ) -> None:
        self._show(logs)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: Any, **_: Any) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _show(self, figures: Mapping[str, Any]) -> None:
        new = {title: f"{figures[name]:.4g}" for name, title in _SHOWN.items() if name in figures}
        if new and self.bar is not None:
            self.losses |= new
            self.bar.set_postfix(self.losses)
