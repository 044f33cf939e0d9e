"""`trimtab eval` with a tiny random model, heads of random weights and a gold function that counts."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from tiny_models import SIZES, save_random_head, save_random_model
from transformers import LlamaConfig

from trimtab.guidance.evaluation.static_bias import measure_static_bias
from trimtab.guidance.features import StreamedFeatures
from trimtab.guidance.policy import load_policy
from trimtab.server.cli import main
from trimtab.server.commands.eval_sampling import Sampler
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.request import SamplingParams

GOLD = """
def vowels(prompt, reply):
    return sum(c in "aeiou" for c in reply) / 8

def per_token(prompt, reply, tokens):
    return [float(text in "aeiou" and text != "") for text in tokens]

def by_name(prompt, reply):
    return {"length": len(reply), "starts": None if prompt.endswith("1") else 1.0}

def broken(prompt, reply):
    return float("nan") if prompt.endswith("1") else 1.0
"""
SMALL = ("--max-tokens", "6", "--num-replies", "2", "--best-of", "1", "2", "3", "--at-kl", "0.01")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eval")
    policy = save_random_model(LlamaConfig(**SIZES), folder / "tiny")
    save_random_head(folder / "heads", policy, "a")
    save_random_head(folder / "heads", policy, "b", form="lowrank", seed=1, parts="a")
    save_random_head(folder / "heads", policy, "judge", seed=2, parts="r")
    (folder / "counting_gold.py").write_text(GOLD)
    write(folder / "prompts.jsonl", [{"prompt": f"say {i}"} for i in range(4)])
    pairs = [{"prompt": f"p {i}", "chosen": f"good {i}!", "rejected": f"bad {i}"} for i in range(6)]
    write(folder / "pairs.jsonl", pairs)
    rollouts = [
        {"prompt": f"x {i // 2}", "completion": "ab"[i % 2] * 3, "reward": float(i % 2)} for i in range(8)
    ]
    write(folder / "rollouts.jsonl", rollouts)
    return folder


def write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def judge(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs the command in the folder; returns the exit code, the report and the last line of stderr.
    Pictures take longest, and are drawn only where they are looked at."""
    monkeypatch.chdir(folder)

    def run(*flags: str, heads: tuple[str, ...] = ("a",), draw: bool = False) -> tuple[int, dict, str]:
        out = folder / "out"
        if not draw:
            monkeypatch.setattr("trimtab.guidance.evaluation.page.all_pictures", lambda report: [])
        (out / "report.json").unlink(missing_ok=True)
        chosen = ("--heads", *(f"heads/{name}" for name in heads)) if heads else ()
        code = main(["eval", "--model", "tiny", *chosen, "--out", str(out), *flags])
        lines = capsys.readouterr().err.splitlines()
        report = json.loads((out / "report.json").read_text()) if code == 0 else {}
        return code, report, lines[-1] if lines else ""

    return run


def curves(report: dict) -> dict[str, dict]:
    return {curve["name"]: curve for curve in report["frontier"]["curves"]}


def test_a_frontier_holds_every_head_beside_its_baselines(judge, folder: Path):
    flags = ("--prompts", "prompts.jsonl", "--gold", "counting_gold:vowels", "--strengths", "0.5", "1")
    fit = ("--static-bias", "fit", "--rollouts", "rollouts.jsonl", "--bias-strengths", "1", "2")
    (folder / "lora.json").write_text(
        json.dumps(
            {
                "label": "LoRA",
                "points": [
                    {"scale": 1, "prompt_ids": [0, 1, 2, 3], "texts": ["aa", "e", "x", "u"], "kls": [1] * 4}
                ],
            }
        )
    )
    code, report, _ = judge(*flags, *fit, "--external", "lora.json", *SMALL, heads=("a", "b"))
    assert code == 0
    found = curves(report)
    assert set(found) == {"a", "b", "static bias", "LoRA", "best-of-n by gold", "best-of-n by a reward"}
    assert [point["knob"] for point in found["a"]["points"]] == [0, 0.5, 1]
    assert found["a"]["proxy"] == "a reward"
    assert found["b"]["proxy"] is None
    plain, *steered = found["a"]["points"]
    assert (plain["kl"]["mean"], plain["flip_rate"], plain["num_replies"]) == (0, 0, 8)
    assert all(point["kl"]["mean"] > 0 and point["num_replies"] == 8 for point in steered)
    assert plain["perplexity"] == pytest.approx(math.exp(plain["entropy"]))
    assert steered[1]["perplexity"] != pytest.approx(math.exp(steered[1]["entropy"]))
    assert all(point["kl"]["mean"] > 0 for point in found["static bias"]["points"][1:])
    assert found["LoRA"]["points"][1]["scores"]["gold"]["estimate"]["mean"] == pytest.approx(1 / 8)
    assert found["best-of-n by gold"]["is_bound"]
    golds = [p["scores"]["gold"]["estimate"]["mean"] for p in found["best-of-n by gold"]["points"]]
    assert golds[0] <= golds[1] <= golds[2]
    assert golds[0] == pytest.approx(plain["scores"]["gold"]["estimate"]["mean"])
    assert report["frontier"]["baseline"] == "static bias"
    assert {row["curve"] for row in report["frontier"]["at_kl"]} >= {"a", "b", "static bias"}


def test_all_files_are_whole_and_the_page_needs_nothing_else(judge, folder: Path):
    code, _, _ = judge(
        *("--prompts", "prompts.jsonl", "--gold", "counting_gold:per_token", "--strengths", "1", "2"),
        *("--preferences", "pairs.jsonl", "--sycophancy", "packaged"),
        *SMALL,
        draw=True,
    )
    assert code == 0
    names = {path.name for path in (folder / "out").iterdir()}
    assert names >= {"report.json", "report.html", "frontier.png", "variety.png", "reliability.png"}
    assert not [name for name in names if name.startswith(".")]
    assert (folder / "out" / "frontier.png").read_bytes().startswith(b"\x89PNG")
    page = (folder / "out" / "report.html").read_text()
    assert "<script" not in page
    assert all(link.startswith(("data:image/png", "#")) for link in links(page))


def links(page: str) -> list[str]:
    return [part.split('"')[0] for key in ('src="', 'srcset="', 'href="') for part in page.split(key)[1:]]


def test_the_same_seed_gives_the_same_report_and_another_does_not(judge):
    flags = ("--prompts", "prompts.jsonl", "--gold", "counting_gold:vowels", "--strengths", "1", *SMALL)
    first, again, other = (judge(*flags, "--seed", seed)[1]["frontier"] for seed in ("3", "3", "4"))
    assert first == again
    assert first["curves"] != other["curves"]


def test_a_gold_head_is_read_from_its_folder_and_is_no_curve(judge):
    flags = ("--prompts", "prompts.jsonl", "--gold", "reward:heads/judge", "--strengths", "1", *SMALL)
    code, report, _ = judge(*flags)
    assert code == 0
    assert report["frontier"]["gold"] == ["gold"]
    assert set(curves(report)) == {"a", "best-of-n by gold", "best-of-n by a reward"}


def test_scores_by_name_may_be_missing_and_are_counted(judge):
    flags = ("--prompts", "prompts.jsonl", "--gold", "counting_gold:by_name", "--strengths", "1", *SMALL)
    _, report, _ = judge(*flags)
    assert report["frontier"]["gold"] == ["length", "starts"]
    point = curves(report)["a"]["points"][0]
    assert point["scores"]["starts"]["unscored"] == 0.25
    assert point["scores"]["starts"]["estimate"]["mean"] == 1
    assert report["frontier"]["problems"] == []


def test_nan_from_the_gold_function_is_refused_or_skipped_with_a_count(judge):
    flags = ("--prompts", "prompts.jsonl", "--gold", "counting_gold:broken", "--strengths", "1", *SMALL)
    code, _, line = judge(*flags)
    assert code == 1
    assert "3 of 12 replies have no score, first to prompt 1" in line
    code, report, _ = judge(*flags, "--on-bad-scores", "skip")
    assert code == 0
    assert report["frontier"]["problems"][0].startswith("gold: 5 replies have no score")
    assert curves(report)["a"]["points"][0]["scores"]["gold"]["unscored"] == 0.25


def test_preferences_are_judged_by_every_part_beside_length(judge):
    code, report, _ = judge("--preferences", "pairs.jsonl")
    assert code == 0
    found = report["preferences"]
    assert [(part["head"], part["part"]) for part in found["parts"]] == [
        ("a", "reward"),
        ("a", "value"),
        ("a", "advantage"),
    ]
    assert (found["length"]["rule"], found["length"]["accuracy"]["mean"]) == ("longer", 1.0)
    assert report["frontier"] is None


def test_prompts_over_the_context_are_refused_or_skipped_with_a_count(judge, folder: Path):
    write(folder / "long.jsonl", [{"prompt": "x" * 125}, {"prompt": "short"}])
    flags = ("--prompts", "long.jsonl", "--strengths", "1", *SMALL)
    code, _, line = judge(*flags)
    assert code == 1
    assert "long.jsonl: 1 prompts" in line
    code, report, _ = judge(*flags, "--on-bad-rows", "skip")
    assert code == 0
    assert report["frontier"]["num_prompts"] == 1
    assert report["frontier"]["problems"] == ["1 prompts do not fit the context, first row 0"]


@pytest.mark.parametrize(
    ("flags", "heads", "says"),
    [
        ((), ("a",), "nothing to judge"),
        (("--sections", "frontier"), ("a",), "section frontier needs --prompts"),
        (("--sections", "frontier", "--preferences", "x"), ("a",), "sections leave preferences out"),
        (("--prompts", "none.jsonl"), ("a",), "none.jsonl"),
        (("--prompts", "pairs.jsonl"), ("a",), "chosen"),
        (("--prompts", "prompts.jsonl", "--gold", "counting_gold:none"), ("a",), "--gold counting_gold:none"),
        (("--prompts", "prompts.jsonl", "--gold", "reward:b"), ("a", "b"), "no reward part"),
        (("--prompts", "prompts.jsonl"), ("judge",), "judge cannot steer"),
        (("--prompts", "prompts.jsonl", "--steer", "c=1"), ("a",), "'c' is not loaded"),
        (("--prompts", "prompts.jsonl", "--static-bias", "fit"), ("a",), "go together"),
        (("--prompts", "prompts.jsonl", "--static-bias", "pairs.jsonl"), ("a",), "pairs.jsonl"),
        (
            ("--preferences", "pairs.jsonl", "--gold", "counting_gold:vowels"),
            ("a",),
            "gold needs the frontier",
        ),
        (("--preferences", "pairs.jsonl"), (), "give --heads"),
        (("--sycophancy", "pairs.jsonl"), ("a",), "pairs.jsonl"),
        (("--preferences", "prompts.jsonl"), ("a",), "chosen is missing"),
    ],
)
def test_wrong_input_is_told_in_one_line(judge, flags, heads, says):
    code, _, line = judge(*flags, "--max-tokens", "6", heads=heads)
    assert code in (1, 2)
    assert line.startswith("trimtab: ")
    assert says in line


def test_a_static_bias_costs_what_the_engine_itself_says_of_the_same_tilt(folder: Path):
    """At one token the engine's own log-probabilities tell the KL: E_b[log π_b − log π₀] over many draws."""
    engine = Engine.from_config(EngineConfig(folder / "tiny"))
    prompt = tuple(engine.policy.tokenizer("say")["input_ids"])
    sampler = Sampler(engine, ("say",), (prompt,), SamplingParams(max_tokens=1, n=64, seed=1), ())
    bias = ((97, 2.0), (98, -1.0))
    replies = sampler.sample("biased", bias=bias)
    policy = load_policy(folder / "tiny")
    costs = measure_static_bias(bias, StreamedFeatures(policy), sampler.encode(replies))
    with torch.no_grad():
        base = policy.model(torch.tensor([prompt])).logits[0, -1].double().log_softmax(-1)
    tilted = base.clone()
    tilted[97] += 2
    tilted[98] -= 1
    tilted = tilted.log_softmax(-1)
    kl = float((tilted.exp() * (tilted - base)).sum())
    assert all(cost.kl == pytest.approx(kl, abs=1e-5) for cost in costs)
    for reply, cost in zip(replies, costs, strict=True):
        assert cost.base_logprob == pytest.approx(float(base[reply.token_ids[0]]), abs=1e-4)
        assert reply.logprob == pytest.approx(float(tilted[reply.token_ids[0]]), abs=1e-4)
