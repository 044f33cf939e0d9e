"""A progress bar of a part's training that shows its losses; on what is no terminal, nothing moves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerState, TrainingArguments

from trimtab.guidance.training.log import HELD_OUT, NOTHING

_SHOWN = {"loss": "loss", HELD_OUT: "held out", NOTHING: "knowing nothing"}


class LossBar(TrainerCallback):  # type: ignore[misc]  # transformers has no type stubs
    """part: what the bar is called."""

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
