"""One part's training on an objective that is worked out by hand: y = w x, trained on squared errors."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from trimtab.guidance.errors import DataError
from trimtab.guidance.losses.common import LossResult
from trimtab.guidance.training import checkpoint
from trimtab.guidance.training.config import OptimiserConfig, TrainConfig
from trimtab.guidance.training.learning_curve import draw_learning_curves
from trimtab.guidance.training.log import TrainingLog
from trimtab.guidance.training.loop import train_part

POINTS = [(float(x), 2.0 * x) for x in range(1, 12)]
OPTIMISER = OptimiserConfig(epochs=2, batch_size=8, learning_rate=0.05, warmup=0.0)


class Line(nn.Module):
    """Items are (x, y)."""

    policy = SimpleNamespace(device=torch.device("cpu"))

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.seen: list[list[float]] = []

    def prepare(self, items: Sequence[Any]) -> None:
        self.prepared = len(items)

    def figures(self) -> dict[str, Tensor]:
        return {"slope": self.weight.detach()[0]}

    def prepare_held_out(self, items: Sequence[Any]) -> None:
        pass

    @torch.no_grad()
    def forget(self, items: Sequence[Any]) -> None:
        self.weight.zero_()

    def collate(self, items: Sequence[Any]) -> dict[str, Tensor]:
        self.seen.append([x for x, _ in items])
        return {"x": torch.tensor([x for x, _ in items]), "y": torch.tensor([y for _, y in items])}

    def forward(self, x: Tensor, y: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return {"error": self.weight[0] * x + self.weight[1] - y}, {"x": x.mean()}


def squared(error: Tensor) -> LossResult:
    return LossResult(error.square(), {"rmse": error.detach().square().mean().sqrt()})


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        name="line",
        model="none",
        head_folder=tmp_path / "head",
        run_folder=tmp_path / "run",
        show_progress=False,
        device="cpu",
    )


def train(
    config: TrainConfig, data: Any = POINTS, optimiser: OptimiserConfig = OPTIMISER, **more: Any
) -> Line:
    line = Line()
    folder = config.run_folder / "value"
    train_part(
        line,
        more.pop("loss", squared),
        data,
        folder=folder,
        optimiser=optimiser,
        config=config,
        device=torch.device("cpu"),
        **more,
    )
    return line


def smaller(batch_size: int) -> OptimiserConfig:
    return dataclasses.replace(OPTIMISER, batch_size=batch_size)


def test_batches_that_make_up_a_step_train_what_one_batch_does(config: TrainConfig, tmp_path: Path):
    """Of 11 items in steps of 8 the last step has 3: in batches of 2 these are 2 and 1, which weigh so."""
    whole = train(config)
    for batch_size in (4, 2):
        steps = dataclasses.replace(
            config, run_folder=tmp_path / str(batch_size), gradient_accumulation=8 // batch_size
        )
        torch.testing.assert_close(
            train(steps, optimiser=smaller(batch_size)).weight, whole.weight, rtol=0, atol=1e-6
        )


def test_every_item_is_trained_on_once_an_epoch_in_another_order_each_time(config: TrainConfig):
    seen = train(config).seen
    epochs = [seen[0] + seen[1], seen[2] + seen[3]]
    assert all(sorted(epoch) == [x for x, _ in POINTS] for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_a_loss_that_is_no_number_stops_by_part_and_step_and_keeps_the_checkpoint_before(config: TrainConfig):
    def fails_late(error: Tensor) -> LossResult:
        nonlocal steps
        steps += 1
        return LossResult(error.square() * (float("nan") if steps == 4 else 1.0), {})

    steps = 0
    config = dataclasses.replace(config, save_every=1)
    with pytest.raises(DataError, match="value: the loss is nan at step 4: give a lower learning rate"):
        train(config, loss=fails_late)
    assert checkpoint.last_checkpoint(config.run_folder / "value").name == "checkpoint-3"


def test_weights_that_are_no_numbers_are_not_saved(config: TrainConfig):
    """A loss of 0 with an infinite slope: √x at 0."""

    def slope(error: Tensor) -> LossResult:
        return LossResult((error - error.detach()).abs().sqrt(), {})

    with pytest.raises(DataError, match=r"holds NaN or inf at checkpoint-1"):
        train(dataclasses.replace(config, save_every=1), loss=slope)
    assert checkpoint.last_checkpoint(config.run_folder / "value") is None


@pytest.mark.parametrize("file", ["model.safetensors", "optimiser.safetensors"])
def test_a_full_disk_is_told_and_the_checkpoint_before_is_where_a_run_goes_on(
    config: TrainConfig, tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch
):
    plain = train(dataclasses.replace(config, run_folder=tmp_path / "plain"))
    save_file, saved = checkpoint.save_file, []

    def full(tensors: dict[str, Tensor], path: Path) -> None:
        if path.name == f".{file}.new":
            saved.append(path)
        if len(saved) == 3:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save_file(tensors, path)

    config = dataclasses.replace(config, save_every=1)
    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(DataError, match=r"No space left on device.*: make room, and resume"):
        train(config)
    monkeypatch.undo()
    assert checkpoint.last_checkpoint(config.run_folder / "value").name == "checkpoint-2"
    resumed = train(dataclasses.replace(config, resume=True))
    assert torch.equal(resumed.weight, plain.weight)


@pytest.mark.parametrize("epochs", [2.0, 1.5])
def test_a_finished_part_is_only_read(config: TrainConfig, epochs: float):
    """1.5 epochs of 2 steps end in the middle of one."""
    optimiser = dataclasses.replace(OPTIMISER, epochs=epochs)
    trained = train(config, optimiser=optimiser)
    again = train(dataclasses.replace(config, resume=True), optimiser=optimiser)
    assert torch.equal(again.weight, trained.weight)
    assert again.seen == []
    assert not hasattr(again, "prepared")


CONTRARY = [(x, -y) for x, y in POINTS]
PATIENT = dataclasses.replace(OPTIMISER, epochs=9, patience=2)


def log_of(config: TrainConfig) -> TrainingLog:
    return checkpoint.read_log(checkpoint.last_checkpoint(config.run_folder / "value"))


def test_training_ends_where_held_out_rows_only_lose_and_keeps_the_best_weights(config: TrainConfig):
    """What is learned hurts on rows of the contrary slope: the first epoch is best, two more are tried."""
    stopped = train(config, optimiser=PATIENT, held_out=CONTRARY)
    seen = log_of(config)
    assert [step for step, _ in seen.held_out] == [2, 4, 6]
    assert seen.best_step == 2
    assert seen.nothing == pytest.approx(sum(y * y for _, y in POINTS) / len(POINTS))
    assert seen.held_out[0][1] > seen.nothing
    assert [step for step, _ in seen.train] == [2, 4, 6]
    x, y = (torch.tensor(side) for side in zip(*CONTRARY, strict=True))
    loss = (stopped.weight[0] * x + stopped.weight[1] - y).square().mean().item()
    assert loss == pytest.approx(seen.held_out[0][1], rel=1e-5)
    assert [path.name for path in (config.run_folder / "value").glob("best-*")] == ["best-2"]


def test_without_patience_training_goes_on_to_its_last_step(config: TrainConfig):
    optimiser = dataclasses.replace(PATIENT, patience=0)
    plain = train(config, optimiser=dataclasses.replace(optimiser, patience=0), held_out=CONTRARY)
    assert log_of(config).held_out == ()
    assert len(plain.seen) == 18


def test_training_that_goes_on_helping_goes_on(config: TrainConfig):
    trained = train(config, optimiser=PATIENT, held_out=POINTS)
    seen = log_of(config)
    assert len(seen.held_out) == 9
    assert seen.held_out[-1][1] < seen.held_out[0][1] < seen.nothing
    best = load_file(config.run_folder / "value" / f"best-{seen.best_step}" / "model.safetensors")
    assert torch.equal(best["objective.weight"], trained.weight)


@pytest.mark.parametrize("steps", range(1, 7))
def test_a_stopped_run_resumes_to_the_same_epoch_and_weights(config: TrainConfig, tmp_path: Path, steps: int):
    whole = train(config, optimiser=PATIENT, held_out=CONTRARY)
    count = 0

    def dies(error: Tensor) -> LossResult:
        nonlocal count
        count += error.requires_grad
        if count > steps:
            raise KeyboardInterrupt
        return squared(error)

    broken = dataclasses.replace(config, run_folder=tmp_path / "broken")
    if steps < 6:
        with pytest.raises(KeyboardInterrupt):
            train(broken, optimiser=PATIENT, held_out=CONTRARY, loss=dies)
    else:
        train(broken, optimiser=PATIENT, held_out=CONTRARY, loss=dies)
    again = train(dataclasses.replace(broken, resume=True), optimiser=PATIENT, held_out=CONTRARY)
    assert torch.equal(again.weight, whole.weight)
    assert log_of(broken) == log_of(config)
    assert (again.seen == []) == (steps == 6)


def test_a_picture_is_drawn_of_what_was_logged(config: TrainConfig):
    train(config, optimiser=PATIENT, held_out=CONTRARY)
    picture = draw_learning_curves(config.run_folder)
    assert picture.read_bytes().startswith(b"\x89PNG")
    width, height = (int.from_bytes(picture.read_bytes()[i : i + 4], "big") for i in (16, 20))
    assert width > height > 300


def test_the_bar_shows_losses(config: TrainConfig, monkeypatch: pytest.MonkeyPatch):
    shown: list[dict[str, str]] = []

    class Bar:
        def __init__(self, **settings: Any) -> None:
            assert settings["desc"] == "value"
            assert settings["total"] == 18
            self.n = settings["initial"]

        def set_postfix(self, losses: dict[str, str]) -> None:
            shown.append(dict(losses))

        def update(self, steps: int) -> None:
            self.n += steps

        def close(self) -> None:
            shown.append({"steps": str(self.n)})

    monkeypatch.setattr("trimtab.guidance.training.log.tqdm", Bar)
    train(dataclasses.replace(config, show_progress=True), optimiser=PATIENT, held_out=CONTRARY)
    assert shown[-1] == {"steps": "6"}
    assert shown[-2].keys() == {"loss", "held out", "knowing nothing"}


class Counting(IterableDataset[Any]):
    """Gives points as long as it is asked, and remembers how far the weight was at each."""

    def __init__(self) -> None:
        self.line: Line | None = None
        self.weights: list[float] = []

    def __iter__(self) -> Iterator[tuple[float, float]]:
        while True:
            self.weights.append(0.0 if self.line is None else self.line.weight[0].item())
            yield POINTS[len(self.weights) % len(POINTS)]


def test_a_stream_is_read_when_a_step_needs_it(config: TrainConfig):
    """Batches of 2, 3 steps: each batch is drawn under the weights that the step before it left."""
    stream, line = Counting(), Line()
    stream.line = line
    train_part(
        line,
        squared,
        stream,
        folder=config.run_folder / "value",
        optimiser=smaller(2),
        config=config,
        device=torch.device("cpu"),
        max_steps=3,
    )
    assert len(stream.weights) == 6
    assert stream.weights[0] == stream.weights[1] == 0
    assert stream.weights[2] == stream.weights[3] != 0
    assert stream.weights[4] == stream.weights[5] not in (0, stream.weights[2])
    assert checkpoint.last_checkpoint(config.run_folder / "value").name == "checkpoint-3"


def test_precision_that_a_device_does_not_have_is_refused(config: TrainConfig):
    with pytest.raises(DataError, match="precision=fp16 needs a GPU"):
        train(dataclasses.replace(config, precision="fp16"))


def test_half_precision_trains(config: TrainConfig, tmp_path: Path):
    full = train(config)
    half = train(dataclasses.replace(config, precision="bf16", run_folder=tmp_path / "half"))
    assert half.weight.dtype == torch.float32
    torch.testing.assert_close(half.weight, full.weight, rtol=0.05, atol=0.05)


def test_a_reporter_that_is_not_installed_is_refused_by_name(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("trimtab.guidance.training.loop.is_tensorboard_available", lambda: False)
    with pytest.raises(DataError, match="pip install tensorboard"):
        train(dataclasses.replace(config, report_to="tensorboard"))
