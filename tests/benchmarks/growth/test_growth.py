from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu.engine.speed import reply_tokens
from benchmarks.gpu.engine.subject import Subject
from benchmarks.growth.__main__ import main
from benchmarks.growth.sweeps import CPU, CUDA, SWEEPS, TOY, Floor, Point, Rates, short_context, step_floor
from trimtab.server.engine.config import TOKEN_BUDGET

DEVICE = torch.device("cpu")


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject(TOY.model, DEVICE, torch.float32, TOY.rank)


def test_the_floor_reads_weights_once_and_each_row_s_keys_and_values(subject: Subject):
    rates = Rates(bytes_per_second=1e9, flops_per_second=1e30)
    size = subject.size
    body = sum(weight.numel() for weight in subject.model.model.layers.parameters()) + size.hidden
    weights = 4 * (body + size.vocab * size.hidden)
    keys_and_values = 4 * 2 * size.layers * size.kv_heads * (size.hidden // size.heads)
    floor = step_floor(rates, subject, 3, 10, ())
    assert floor.memory == pytest.approx(1e3 * (weights + 3 * 10 * keys_and_values) / 1e9)
    assert floor.milliseconds == floor.memory
    lowrank = 4 * TOY.rank * (size.hidden + size.vocab)
    with_head = step_floor(rates, subject, 3, 10, ("lowrank",))
    assert with_head.memory - floor.memory == pytest.approx(1e3 * lowrank / 1e9)
    assert with_head.arithmetic - floor.arithmetic == pytest.approx(1e3 * 2 * 3 * lowrank / 4 / 1e30)


def test_the_floor_of_arithmetic_binds_where_it_is_the_higher(subject: Subject):
    slow = Rates(bytes_per_second=1e30, flops_per_second=1e6)
    one, two = (step_floor(slow, subject, rows, 0, ()) for rows in (1, 2))
    assert one.milliseconds == one.arithmetic
    assert two.arithmetic == pytest.approx(2 * one.arithmetic)


def test_a_point_is_told_per_token():
    point = Point(5, 4, {"plain": 20.0}, Floor(8.0, 2.0)).as_dict()
    assert point["milliseconds_per_token"] == {"plain": 5.0}
    assert point["floor"] == 2.0
    assert point["floor_is"] == "memory"


@pytest.mark.parametrize("sizes", [CPU, CUDA])
def test_the_sweeps_reach_as_far_as_is_asked(sizes: Any):
    reach = {"rows": (1, 256), "context": (128, 8192), "heads": (1, 16), "vocabulary": (8000, 152000)}
    for name, ends in reach.items():
        places = SWEEPS[name].places(sizes)
        assert (places[0], places[-1]) == ends
        assert list(places) == sorted(places)


@pytest.mark.parametrize(("sizes", "device"), [(CPU, "cpu"), (CUDA, "cuda")])
def test_the_longest_requests_fit_the_models(sizes: Any, device: str):
    for num_rows, prompt, max_len in (
        (sizes.context_rows, max(sizes.contexts), sizes.model.max_len),
        (sizes.vocab_rows, sizes.prompt, sizes.small.max_len),
        (max(sizes.rows), sizes.prompt, short_context(sizes)),
        (sizes.head_rows, sizes.prompt, short_context(sizes)),
    ):
        budget = max(TOKEN_BUDGET[device], num_rows)
        assert prompt + reply_tokens(sizes.steps, num_rows, prompt, budget) <= max_len


def test_it_measures_and_draws_every_sweep_and_draws_again_from_the_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def run(*flags: str) -> None:
        monkeypatch.setattr(sys, "argv", ["growth", *flags])
        main()

    out = tmp_path / "results" / "growth-cpu.json"
    run("--sizes", "toy", "--out", str(out), "--plots", str(tmp_path))
    report = json.loads(out.read_text(encoding="utf-8"))
    assert report == json.loads(capsys.readouterr().out.splitlines()[-1])
    assert str(tmp_path) not in out.read_text(encoding="utf-8"), "it is committed, and holds no path"
    assert report["sweeps"].keys() == SWEEPS.keys()
    for name, sweep in SWEEPS.items():
        points = report["sweeps"][name]["points"]
        assert [point["x"] for point in points] == list(sweep.places(TOY))
        for point in points:
            assert point["milliseconds_per_token"].keys() == {"plain", "lowrank", "tied"}
            assert all(time > point["floor"] > 0 for time in point["milliseconds_per_token"].values())
    pictures = {f"growth-cpu-{name}.png" for name in SWEEPS}
    assert {path.name for path in tmp_path.glob("*.png")} == pictures
    run("--redraw", str(out), "--plots", str(tmp_path / "again"))
    assert {path.name for path in (tmp_path / "again").glob("*.png")} == pictures
