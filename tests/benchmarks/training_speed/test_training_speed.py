"""The training benchmark on a policy of a few numbers, and what its turns come to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_models import save_random_model
from transformers import LlamaConfig

from benchmarks.common import main
from benchmarks.cpu.subject import SIZES
from benchmarks.training_speed import __main__ as speed
from benchmarks.training_speed.__main__ import as_markdown, break_even, summarise
from benchmarks.training_speed.contenders import CONTENDERS, SpeedConfig, draw_pairs, from_json

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16, "num_attention_heads": 2}


def a_turn(epoch: float, once: float, peak: int = 2) -> dict[str, float]:
    return {
        "epoch_seconds": epoch,
        "epoch_cpu_seconds": epoch,
        "prepare_seconds": once,
        "peak_bytes": peak,
        "idle_bytes": 1,
    }


@pytest.mark.parametrize("name", CONTENDERS)
def test_a_contender_times_one_epoch_after_its_warm_up(name, tmp_path):
    model = save_random_model(LlamaConfig(**SIZES | SMALL | {"num_key_value_heads": 2}), tmp_path / "model")
    config = SpeedConfig(pairs=4, prompt_tokens=4, reply_tokens=4, batch_size=2, lora_rank=2, head_rank=2)
    result = CONTENDERS[name](config, model, tmp_path)
    assert 0 < result.epoch_seconds < 60
    assert result.prepare_seconds > 0
    assert result.peak_bytes > result.idle_bytes - 2**20 > 0, "the kernel counts a process's pages in batches"


def test_both_train_on_the_same_pairs():
    config = SpeedConfig(pairs=4, batch_size=2, prompt_tokens=3, reply_tokens=5)
    pairs = draw_pairs(config)
    assert pairs == draw_pairs(from_json(config.to_json()))
    assert {len(reply.prompt_ids) for pair in pairs for reply in pair.replies} == {3}
    assert {len(reply.reply_ids) for pair in pairs for reply in pair.replies} == {5}
    assert all(pair.chosen.prompt_ids == pair.rejected.prompt_ids for pair in pairs)
    assert all(pair.chosen != pair.rejected for pair in pairs)


def test_extraction_is_paid_back_by_hand():
    """10 s once and 1 s an epoch against 6 s an epoch: 10/5; less the peer's own 5 s: (10 − 5)/5."""
    both = {"head": a_turn(1, 10), "lora": a_turn(6, 5)}
    assert break_even(both, reference=False) == 2
    assert break_even(both, reference=True) == 1
    assert break_even({"head": a_turn(1, 3), "lora": a_turn(6, 5)}, reference=True) == 0


def test_ratios_are_taken_within_a_repeat():
    turns = [
        {"head": a_turn(1, 1), "lora": a_turn(10, 1, 4)},
        {"head": a_turn(4, 1), "lora": a_turn(20, 1, 8)},
    ]
    report = summarise(turns)
    assert report["ratio"] == {"median": 0.15, "p10": 0.11, "p90": 0.19}
    assert report["memory_ratio"]["median"] == 0.375
    assert "0.15 (0.11…0.19)" in as_markdown(report)


def test_a_head_that_is_slower_never_pays_back():
    report = summarise([{"head": a_turn(2, 1), "lora": a_turn(1, 1)}])
    assert report["break_even_epochs"] is None
    assert "never" in as_markdown(report)


def test_turns_alternate_and_the_last_line_is_the_document(monkeypatch, tmp_path, capsys):
    order: list[str] = []

    def run(name: str, config: SpeedConfig, model: Path, turn: int) -> dict[str, float]:
        order.append(name)
        return a_turn(1.0 if name == "head" else 20.0, 1.0) | {"threads": 1}

    monkeypatch.setattr(speed, "run_turn", run)
    monkeypatch.setattr(speed, "save_policy", lambda folder, sizes, seed: None)
    flags = ["--repeats", "2", "--out", str(tmp_path / "speed.json")]
    main(SpeedConfig, speed.measure, as_markdown, flags)
    assert order == ["head", "lora", "lora", "head"]
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document == json.loads((tmp_path / "speed.json").read_text())
    assert document["ratio"]["median"] == 0.05
    assert document["machine"]["threads"] == "1"


@pytest.mark.parametrize("change", [{"pairs": 0}, {"repeats": 0}, {"pairs": 10, "batch_size": 4}])
def test_a_configuration_that_means_nothing_is_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        SpeedConfig(**change)


def test_a_head_alone_tells_its_steps():
    """8 s an epoch of four steps, 2 of them the product: 2 s a step, ½ s the product."""
    turns = [{"head": a_turn(8, 1) | {"product_cpu_seconds": 2.0}}]
    report = summarise(turns, num_steps=4)
    assert report["head_step_seconds"]["median"] == 2
    assert report["head_step_product_cpu_seconds"]["median"] == 0.5
    assert "| a step, s | 2 (2…2) |" in as_markdown(report)
    with pytest.raises(ValueError, match="head among them"):
        SpeedConfig(contenders=("lora",))
