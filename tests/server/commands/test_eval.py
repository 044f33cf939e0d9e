"""`trimtab eval` with a tiny random model, heads of random weights and a gold function that counts."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from tiny_models import SIZES, save_random_head, save_random_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from trimtab.guidance.evaluation.baselines.static_bias import measure_static_bias
from trimtab.guidance.features.source import StreamedFeatures
from trimtab.guidance.policy import load_policy
from trimtab.guidance.text.encoding import ReplyEncoder
from trimtab.server.cli import main
from trimtab.server.commands.eval.bench import JudgedPrompts
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.engine import Engine
from trimtab.server.rollouts.sample import EncodedPrompt, SamplePlan, sample_measured

GOLD = """
def vowels(prompt, reply):
    return sum(c in "aeiou" for c in reply) / 8

def per_token(prompt, reply, tokens):
    return [float(text in "aeiou" and text != "") for text in tokens]

def by_name(prompt, reply):
    return {"length": len(reply), "starts": None if prompt.endswith("1") else 1.0}

def batch(completions, answer, **columns):
    return [len(text) + number for text, number in zip(completions, answer)]

def silent(completions):
    return [None] * len(completions)

def mute(prompt, reply):
    return {"gold": None}

def broken(prompt, reply):
    return float("nan") if prompt.endswith("1") else 1.0
"""
SMALL = ("--max-tokens", "6", "--num-replies", "2", "--best-of", "1", "2", "3", "--at-kl", "0.01")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eval")
    policy = save_random_model(LlamaConfig(**SIZES), folder / "tiny")
    save_random_head(folder / "heads", policy, "a", slope=0.5)
    save_random_head(folder / "heads", policy, "b", form="lowrank", seed=1, parts="a")
    save_random_head(folder / "heads", policy, "judge", seed=2, parts="r")
    (folder / "counting_gold.py").write_text(GOLD)
    write(folder / "prompts.jsonl", [{"prompt": f"say {i}"} for i in range(4)])
    pairs = [{"prompt": f"p {i}", "chosen": f"good {i}!", "rejected": f"bad {i}"} for i in range(6)]
    write(folder / "pairs.jsonl", pairs)
    traces = [("1 + 1 = 2.\nSo 2.", True), ("1 + 1 = 3. So 3.", False), ("2", True)]
    asked = [
        {"prompt": f"add {i}", "completion": text, "label": label} for i in range(3) for text, label in traces
    ]
    write(folder / "traces.jsonl", asked)
    rollouts = [
        {"prompt": f"x {i // 2}", "completion": "ab"[i % 2] * 3, "reward": float(i % 2)} for i in range(8)
    ]
    write(folder / "rollouts.jsonl", rollouts)
    twin = {"scale": 1, "kl": 1.0, "scores": {"gold": 1.0}}
    (folder / "twin.json").write_text(json.dumps({"label": "a", "points": [twin]}))
    write(folder / "tuning.jsonl", [{"prompt": f"tell {i}"} for i in range(3)])
    write(folder / "overlap.jsonl", [{"prompt": "tell 0"}, {"prompt": "say 2"}])
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


GROUND = ("--prompts", "prompts.jsonl", "--gold", "counting_gold:vowels", "--strengths", "1", "2", *SMALL)


def test_controllers_are_further_curves_of_the_heads_that_they_suit(judge):
    capped, aimed, gated = "max_kl=0.01/0.001,strength=5", "target=a:1,strength=2/4", "entropy_gate=1"
    code, report, _ = judge(*GROUND, "--controllers", capped, aimed, gated, heads=("a", "b"))
    assert code == 0
    found = curves(report)
    assert {f"a {capped}", f"b {capped}", f"a {aimed}", f"a {gated}", f"b {gated}"} < set(found)
    assert f"b {aimed}" not in found, "b has no value"
    caps = found[f"a {capped}"]
    assert (caps["knob"], [p["knob"] for p in caps["points"]]) == ("max_kl", [0, 0.001, 0.01])
    for point in caps["points"][1:]:
        assert 0 < point["kl"]["mean"] <= point["knob"] * point["length"] * 1.001
    aims = found[f"a {aimed}"]
    assert (aims["knob"], [p["knob"] for p in aims["points"]]) == ("strength", [0, 2, 4])
    constant = {p["knob"]: p["kl"]["mean"] for p in found["a"]["points"]}
    assert [p["knob"] for p in found[f"a {gated}"]["points"]] == list(constant)
    assert aims["points"][1]["kl"]["mean"] <= constant[2]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("max_kl", "max_kl=VALUE"),
        ("max_kl=0.1,max_kl=0.2", "once"),
        ("cap=0.1", "no such controller"),
        ("max_kl=0.1/x,strength=1", "max_kl: must be a number"),
        ("max_kl=0.1/0.2", "add strength="),
        ("max_kl=0.1/0.2,strength=1/2", "only one setting"),
        ("strength=1/2", "names no controller"),
        ("target=a:0/a:1,strength=1", "must be above 0"),
        ("max_kl=0.1,strength=11", "-10…10"),
        ("target=b:1", "'b' has no value"),
    ],
)
def test_controllers_that_make_no_curve_are_refused_before_anything_is_sampled(judge, line: str, says: str):
    code, _, last = judge(*GROUND, "--controllers", line, heads=("a", "b"))
    assert code != 0
    assert says in last
    assert f"--controllers {line}: " in last


def test_rules_are_further_curves_with_what_they_cost_in_tokens(judge):
    smc, best = "smc,particles=4,block=2,strength=1/2", "tilt,strength=1,best_of=1/2/3"
    code, report, last = judge(*GROUND, "--rules", smc, "lookahead,k=3/5,strength=2", best, heads=("a", "b"))
    assert code == 0, last
    found = curves(report)
    assert not {f"b {smc}", "b lookahead,k=3/5,strength=2"} & set(found), "b has no value"
    particles = found[f"a {smc}"]
    assert (particles["knob"], [p["knob"] for p in particles["points"]]) == ("strength", [0, 1, 2])
    assert particles["is_bound"]
    cost = particles["points"][0]["cost"]
    assert 1 < cost < 1.5, "a token each, and one or two that read the reward"
    assert all(point["cost"] > 3 for point in particles["points"][1:])
    looked = [point["cost"] for point in found["a lookahead,k=3/5,strength=2"]["points"]]
    assert looked == pytest.approx([cost, cost + 3, cost + 5], abs=0.5)
    chosen, plain = found[f"a {best} by a reward"]["points"], found["best-of-n by gold"]["points"]
    assert [point["knob"] for point in chosen] == [1, 2, 3]
    rewards = [p["scores"]["a reward"]["estimate"]["mean"] for p in chosen]
    assert rewards[0] < rewards[1] < rewards[2]
    assert chosen[2]["kl"]["mean"] > plain[2]["kl"]["mean"] > 0
    assert chosen[1]["cost"] == pytest.approx(2 * cost, rel=0.3)
    assert f"b {best} by gold" in found
    beside = {(row["curve"], row["knob"]): row for row in report["frontier"]["at_cost"]}
    assert not {curve for curve, _ in beside} & {"a", "b", "best-of-n by gold"}, (
        "they cost no more than plain"
    )
    row = beside[f"a {best} by gold", 2]
    assert set(row["above"]) == {"gold", "a reward"}
    assert row["above"]["gold"]["low"] <= row["above_alone"]["gold"]["low"]
    costs = [point["cost"] for point in found["best-of-n by gold"]["points"]]
    assert costs == sorted(costs)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("smk,strength=1", "no such rule"),
        ("smc,particle=8,strength=1", "particle: smc has no such option; it has block"),
        ("smc,particles=1,strength=1", "particles: must be an integer, 2"),
        ("smc,particles=2/4", "add strength="),
        ("smc,strength=1,best_of=2", "leave best_of out"),
        ("tilt,strength=1,best_of=0.5", "whole number"),
        ("lookahead,k=4", "add strength="),
        ("contrast,gamma=1/2", "--system-prompts"),
        ("contrast", "several values"),
    ],
)
def test_rules_that_make_no_curve_are_refused_before_anything_is_sampled(judge, line: str, says: str):
    code, _, last = judge(*GROUND, "--rules", line, heads=("a", "b"))
    assert code != 0
    assert says in last
    assert f"--rules {line}: " in last


def test_rules_of_a_group_are_one_curve_too(judge):
    line = "tilt,strength=1/2,best_of=2"
    code, report, last = judge(*GROUND, "--group", "both=a,b", "--rules", line, heads=("a", "b"))
    assert code == 0, last
    curve = curves(report)[f"both {line} by gold"]
    assert [member["name"] for member in curve["members"]] == [f"a {line} by gold", f"b {line} by gold"]
    rows = [row for row in report["frontier"]["at_cost"] if row["curve"] == curve["name"]]
    assert [row["knob"] for row in rows] == [1, 2]
    means = [point["scores"]["gold"]["estimate"]["mean"] for point in curve["points"][1:]]
    assert [row["estimate"]["mean"] for row in rows] == pytest.approx(means)


def test_heads_of_one_group_are_one_curve_with_its_seeds_beside_it(judge):
    code, report, _ = judge(*GROUND, "--group", "both=a,b", heads=("a", "b"))
    assert code == 0
    found = curves(report)
    assert "a" not in found
    assert "b" not in found
    members = found["both"]["members"]
    assert [member["name"] for member in members] == ["a", "b"]
    for point, *seeds in zip(found["both"]["points"], *(m["points"] for m in members), strict=True):
        golds = [seed["scores"]["gold"]["estimate"]["mean"] for seed in seeds]
        assert point["scores"]["gold"]["estimate"]["mean"] == pytest.approx(sum(golds) / 2)
        assert point["kl"]["mean"] == pytest.approx(sum(seed["kl"]["mean"] for seed in seeds) / 2)
    [row] = [row for row in report["frontier"]["at_kl"] if row["curve"] == "both"]
    assert row["estimate"]["mean"] == pytest.approx(sum(row["by_seed"]) / 2)


def test_the_plain_point_has_as_many_replies_as_others_and_ties_with_itself(judge, folder: Path):
    """Plain replies, told as those of a tuned policy, drew the same random numbers: all of them tie."""
    code, report, _ = judge(*GROUND)
    assert code == 0
    plain = curves(report)["a"]["points"][0]
    assert (plain["num_replies"], curves(report)["best-of-n by gold"]["points"][0]["num_replies"]) == (8, 4)
    engine = Engine.from_config(EngineConfig(folder / "tiny"))
    texts = [f"say {i}" for i in range(4)]
    encoder = ReplyEncoder(engine.policy.tokenizer, end_ids=engine.policy.eos_token_ids)
    encoded = [EncodedPrompt(i, text, encoder.prompt_ids(text)) for i, text in enumerate(texts)]
    replies = sample_measured(engine, encoded, SamplePlan(num_replies=5, max_tokens=6))
    point = {
        "scale": 1,
        "prompt_ids": [reply.prompt for reply in replies],
        "samples": [reply.sample for reply in replies],
        "texts": [reply.text for reply in replies],
        "token_ids": [reply.token_ids for reply in replies],
        "kls": [0.5] * len(replies),
    }
    (folder / "same.json").write_text(json.dumps({"label": "same", "points": [point]}))
    code, report, _ = judge(*GROUND, "--external", "same.json", heads=())
    assert code == 0
    assert list(curves(report)) == ["same", "best-of-n by gold"]
    before, after = curves(report)["same"]["points"]
    assert before["num_replies"] == after["num_replies"] == 20
    assert before["scores"]["gold"]["estimate"] == after["scores"]["gold"]["estimate"]
    win_rate = after["scores"]["gold"]["win_rate"]
    assert (win_rate["mean"], win_rate["low"], win_rate["high"]) == (0.5, 0.5, 0.5)
    assert after["length"] == before["length"]


def test_the_static_bias_is_chosen_on_its_own_prompts_and_kept(judge, folder: Path):
    fit = ("--static-bias", "fit", "--rollouts", "rollouts.jsonl", "--bias-discount", "0.5", "1")
    grid = (*fit, "--bias-shrinkage", "1", "5", "--bias-tokens", "1", "all", "--tuning-replies", "1")
    code, report, _ = judge(*GROUND, *grid, "--tuning-prompts", "tuning.jsonl")
    assert code == 0
    trials = report["frontier"]["bias_trials"]
    assert [trial["is_chosen"] for trial in trials] == [True] + [False] * (len(trials) - 1)
    assert len(trials) < 8  # one reward a reply: its discount is idle, and its twin is not tried
    assert {trial["setting"]["discount"] for trial in trials} == {0.5}
    assert all(trial["first_kl"] > 0 for trial in trials)
    kept = json.loads((folder / "out" / "static_bias.json").read_text())
    assert len(kept) == trials[0]["num_tokens"]
    (folder / "kept.json").write_text(json.dumps(kept))
    _, again, _ = judge(*GROUND, "--static-bias", "kept.json")
    assert curves(again)["static bias"] == curves(report)["static bias"]


def test_curves_that_fall_short_are_in_the_report_and_another_baseline_may_be_named(judge):
    flags = [flag if flag != "0.01" else "500" for flag in GROUND]
    code, report, _ = judge(*flags, "--baseline", "a", heads=("a", "b"))
    assert code == 0
    assert report["frontier"]["baseline"] == "a"
    missed = {row["curve"]: row for row in report["frontier"]["unreached"]}
    assert set(missed) == {"a", "b", "best-of-n by gold", "best-of-n by a reward"}
    assert 0 < missed["b"]["most"] < 500
    code, report, _ = judge(*GROUND, "--baseline", "a", heads=("a", "b"))
    [row] = [row for row in report["frontier"]["at_kl"] if row["curve"] == "b"]
    assert row["above_baseline"]["mean"] == row["above_baseline_alone"]["mean"]
    assert row["above_best_of_n"] is not None


def test_sections_share_one_copy_of_the_weights_and_the_page_needs_no_other_file(
    judge, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    loads, load = [], AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda *args, **kw: loads.append(args) or load(*args, **kw)
    )
    code, _, _ = judge(
        *("--prompts", "prompts.jsonl", "--gold", "counting_gold:per_token", "--strengths", "1", "2"),
        *("--preferences", "pairs.jsonl", "--sycophancy", "packaged", "--steps", "traces.jsonl"),
        *SMALL,
        draw=True,
    )
    assert (code, len(loads)) == (0, 1)
    names = {path.name for path in (folder / "out").iterdir()}
    pictures = {f"{name}.png" for name in ("frontier", "variety", "reliability", "steps")}
    assert names >= {"report.json", "report.html", *pictures}
    assert not [name for name in names if name.startswith(".")]
    assert (folder / "out" / "frontier.png").read_bytes().startswith(b"\x89PNG")
    page = (folder / "out" / "report.html").read_text()
    assert "<script" not in page
    assert all(link.startswith(("data:image/png", "#")) for link in links(page))


def test_steps_are_counted_and_measured_by_heads_that_have_a_value(judge):
    code, report, _ = judge("--steps", "traces.jsonl", heads=("a", "b", "judge"))
    found = report["steps"]
    assert code == 0
    assert (found["num_traces"], found["num_right"], found["num_questions"]) == (9, 6, 3)
    assert found["num_steps"] == pytest.approx((2 + 2 + 1) / 3)
    [one] = found["heads"]
    assert one["head"] == "a"
    assert 0 <= one["accuracy"]["mean"] <= 1


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


def test_a_static_bias_is_fitted_on_plain_rollouts_alone(judge, folder: Path):
    rows = [json.loads(line) for line in (folder / "rollouts.jsonl").read_text().splitlines()]
    write(
        folder / "mixed.jsonl", [row | {"temperature": 0.5 if i < 2 else 1.0} for i, row in enumerate(rows)]
    )
    flags = ("--prompts", "prompts.jsonl", "--gold", "counting_gold:vowels", "--strengths", "1", *SMALL)
    fit = ("--static-bias", "fit", "--rollouts", "mixed.jsonl")
    code, _, line = judge(*flags, *fit)
    assert code == 1
    assert (
        "2 of 8 rollouts were not drawn from the policy itself (temperature 0.5), and a static bias" in line
    )
    assert judge(*flags, *fit, "--on-bad-rows", "skip")[0] == 0


def test_gold_and_proxy_are_spelled_as_scores_of_rollouts_are(judge, folder: Path):
    """A batch function reads columns of the prompts; a proxy head is named by its folder."""
    write(folder / "answers.jsonl", [{"prompt": f"say {i}", "answer": i} for i in range(4)])
    flags = ("--prompts", "answers.jsonl", "--strengths", "1", *SMALL)
    gold = ("--gold", "function:counting_gold:batch")
    code, report, _ = judge(*flags, *gold, "--proxy", "reward:heads/judge")
    assert code == 0
    assert report["frontier"]["gold"] == ["gold"]
    assert curves(report)["a"]["proxy"] == "judge reward"
    assert "best-of-n by judge reward" in curves(report)
    code, _, line = judge("--prompts", "prompts.jsonl", *flags[2:], *gold)
    assert code == 1
    assert "reads the column answer" in line


def test_scores_by_name_may_be_missing_and_are_counted(judge):
    flags = ("--prompts", "prompts.jsonl", "--gold", "counting_gold:by_name", "--strengths", "1", *SMALL)
    _, report, _ = judge(*flags)
    assert report["frontier"]["gold"] == ["length", "starts"]
    point = curves(report)["a"]["points"][0]
    assert point["scores"]["starts"]["unscored"] == 0.25
    assert point["scores"]["starts"]["estimate"]["mean"] == 1
    assert [line.partition(" of ")[2] for line in report["frontier"]["problems"]] == [
        "20 replies were left without a score"
    ]


def test_a_gold_function_that_scores_nothing_is_told(judge):
    flags = ("--prompts", "prompts.jsonl", "--strengths", "1", *SMALL)
    for name in ("silent", "mute"):
        code, _, line = judge(*flags, "--gold", f"counting_gold:{name}")
        assert (code, "all 12 replies are left without a score" in line) == (1, True), line


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


TUNED = (
    *("--prompts", "prompts.jsonl", "--static-bias", "fit", "--rollouts", "rollouts.jsonl"),
    *("--bias-tokens", "1", "2"),
)


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
        (("--prompts", "prompts.jsonl", "--group", "g=a"), ("a",), "--group g=a: write NAME=HEAD,HEAD"),
        (("--prompts", "prompts.jsonl", "--group", "g=a,c"), ("a", "b"), "c is none of the heads"),
        (("--prompts", "prompts.jsonl", "--group", "g=a,b", "h=a,b"), ("a", "b"), "belongs to one group"),
        (("--prompts", "prompts.jsonl", "--baseline", "c"), ("a",), "--baseline c is none of the curves, a"),
        (("--prompts", "prompts.jsonl", "--external", "twin.json"), ("a",), "two curves are called a"),
        ((*TUNED, "--tuning-prompts", "overlap.jsonl"), ("a",), "1 prompts are among --prompts, first row 1"),
        ((*TUNED,), ("a",), "need --tuning-prompts"),
        ((*TUNED[:-1], "--tuning-prompts", "tuning.jsonl"), ("a",), "several of"),
        (("--prompts", "prompts.jsonl", "--static-bias", "pairs.jsonl"), ("a",), "pairs.jsonl"),
        (
            ("--preferences", "pairs.jsonl", "--gold", "counting_gold:vowels"),
            ("a",),
            "gold needs the frontier",
        ),
        (("--preferences", "pairs.jsonl"), (), "give --heads"),
        (("--sycophancy", "pairs.jsonl"), ("a",), "pairs.jsonl"),
        (("--steps", "traces.jsonl"), ("judge",), "no head has a value part"),
        (("--steps", "traces.jsonl"), (), "give --heads"),
        (("--steps", "traces.jsonl", "--max-model-len", "20"), ("a",), "longer than the context"),
        (("--steps", "absent.jsonl"), ("a",), "absent.jsonl"),
        (("--steps", "pairs.jsonl", "--gold", "counting_gold:vowels"), ("a",), "gold needs the frontier"),
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
    encoder = ReplyEncoder(engine.policy.tokenizer, end_ids=engine.policy.eos_token_ids)
    prompt = encoder.prompt_ids("say")
    bias = ((97, 2.0), (98, -1.0))
    judged = JudgedPrompts((EncodedPrompt(0, "say", prompt),), (), encoder)
    plan = SamplePlan(num_replies=64, max_tokens=1, seed=1, bias=bias)
    replies = sample_measured(engine, judged.encoded, plan)
    policy = load_policy(folder / "tiny")
    costs = measure_static_bias(bias, StreamedFeatures(policy), judged.encode(replies))
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


CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def chat(folder: Path) -> Path:
    """The same policy with a chat template, and one whose template has no place for a system message."""
    for name, template in (("chat", CHAT), ("deaf", CHAT.replace("<{{", "{% if m.role != 'system' %}<{{"))):
        save_random_model(LlamaConfig(**SIZES), folder / name)
        tokenizer = AutoTokenizer.from_pretrained(folder / name)
        end = "\n{% endif %}" if name == "deaf" else "\n"
        tokenizer.chat_template = template.replace("\n", end, 1)
        tokenizer.save_pretrained(folder / name)
    save_random_head(folder / "heads", folder / "chat", "c", scale=0.2)
    (folder / "wordings.yaml").write_text("[{name: curt, system: Be curt}, Be kind]")
    (folder / "wording.txt").write_text("\nBe curt\n")
    (folder / "empty.txt").write_text("\n")
    (folder / "nameless.json").write_text('[{"name": "x"}]')
    return folder


def test_a_system_prompt_is_chosen_and_compared_at_what_it_costs(judge, chat: Path):
    """Its KL is that of the policy with the message from the policy without it, computed by transformers."""
    flags = ("--model", "chat", "--system-prompts", "wordings.yaml", "--tuning-prompts", "tuning.jsonl")
    code, report, _ = judge(*GROUND, *flags, "--baseline", "system prompt", heads=("c",))
    assert code == 0
    frontier = report["frontier"]
    assert [word["is_chosen"] for word in frontier["wordings"]] == [True, False]
    assert {word["name"] for word in frontier["wordings"]} == {"curt", "2"}
    assert {word["tokens_added"] for word in frontier["wordings"]} == {len("<system>Be curt\n")}
    [point] = curves(report)["system prompt"]["points"]
    kl = point["kl"]["mean"]
    rows = {row["curve"]: row for row in frontier["at_kl"] if row["kl"] == kl}
    assert rows["c"]["above_system_prompt"]["mean"] == pytest.approx(
        rows["c"]["estimate"]["mean"] - point["scores"]["gold"]["estimate"]["mean"]
    )
    assert rows["system prompt"]["above_system_prompt"] is None
    rows = [json.loads(line) for line in (chat / "out" / "replies.jsonl").read_text().splitlines()]
    said = [row for row in rows if row["curve"] == "system prompt"]
    assert len(said) == point["num_replies"] == 8
    model, tokenizer = (kind.from_pretrained("chat") for kind in (AutoModelForCausalLM, AutoTokenizer))
    text = frontier["wordings"][0]["text"]
    for row in said:
        plain = f"<user>say {row['prompt']}\n<assistant>"
        ours, base = (
            _logprobs(model, tokenizer(asked)["input_ids"], row)
            for asked in (f"<system>{text}\n{plain}", plain)
        )
        assert row["kl"] == pytest.approx(float((ours.exp() * (ours - base)).sum()), abs=1e-4)
    assert kl == pytest.approx(sum(row["kl"] for row in said) / 8)


def _logprobs(model, prompt: list[int], row: dict) -> torch.Tensor:
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *row["token_ids"]]])).logits[0]
    return logits[len(prompt) - 1 : -1].double().log_softmax(-1)


@pytest.mark.parametrize(
    ("model", "file", "says"),
    [
        ("tiny", "wording.txt", "the prompts are texts"),
        ("deaf", "wording.txt", "chat template reads no system message (it leaves it out)"),
        ("chat", "empty.txt", "empty.txt: must hold at least one system prompt"),
        ("chat", "nameless.json", "nameless.json: system prompt 1 must be a text, or hold system"),
        ("chat", "wordings.yaml", "2 system prompts need --tuning-prompts"),
    ],
)
def test_a_system_prompt_that_cannot_be_measured_is_told_in_one_line(judge, chat: Path, model, file, says):
    code, _, line = judge(*GROUND, "--model", model, "--system-prompts", file, heads=())
    assert code == 1
    assert line.startswith("trimtab: ")
    assert says in line


def test_activation_steering_costs_what_transformers_says_of_the_same_vector(judge, folder: Path):
    """Coefficient 0 is the plain policy to the last bit; another has the KL of a model with that hook."""
    steer = ("--activation-steering", "fit", "--rollouts", "rollouts.jsonl", "--steering-layers", "0", "2")
    tuned = ("--tuning-prompts", "tuning.jsonl", "--steering-coefficients", "3")
    code, report, _ = judge(*GROUND, *steer, *tuned, heads=())
    assert code == 0
    frontier = report["frontier"]
    trials = frontier["steering_trials"]
    assert [trial["is_chosen"] for trial in trials] == [True, False]
    assert {trial["layer"] for trial in trials} == {0, 2}
    plain, point = curves(report)["activation steering"]["points"]
    assert (plain["kl"]["mean"], point["knob"]) == (0, 3)
    rows = [json.loads(line) for line in (folder / "out" / "replies.jsonl").read_text().splitlines()]
    model, tokenizer = (kind.from_pretrained("tiny") for kind in (AutoModelForCausalLM, AutoTokenizer))
    layer = trials[0]["layer"]
    steering = own_steering(model, tokenizer, layer)

    def add(_, __, output):
        return output + 3 * steering

    for row in [row for row in rows if row["curve"] == "activation steering"]:
        asked = tokenizer(f"say {row['prompt']}")["input_ids"]
        base = _logprobs(model, asked, row)
        hook = model.model.layers[layer].register_forward_hook(add)
        ours = _logprobs(model, asked, row)
        hook.remove()
        assert row["kl"] == pytest.approx(float((ours.exp() * (ours - base)).sum()), rel=1e-3, abs=1e-4)


def own_steering(model, tokenizer, layer: int) -> torch.Tensor:
    """The mean of bbb and its end to four prompts less that of aaa, as the rollouts are."""
    seen: list[torch.Tensor] = []
    hook = model.model.layers[layer].register_forward_hook(lambda _, __, output: seen.append(output))
    for text in "ba":
        ids = [tokenizer(f"x {i}{text * 3}")["input_ids"] + [tokenizer.eos_token_id] for i in range(4)]
        with torch.no_grad():
            model.model(torch.tensor(ids))
    hook.remove()
    good, bad = (h[:, 3:].mean((0, 1)) for h in seen)
    return good - bad


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--activation-steering", "fit"), "go together"),
        (("--steering-layers", "1"), "need --activation-steering fit"),
        (("--activation-steering", "x"), "activation_steering must be fit"),
        (("--activation-steering", "fit", "--rollouts", "rollouts.jsonl", "--steering-layers", "3"), "0…2"),
    ],
)
def test_steering_that_cannot_be_had_is_told_in_one_line(judge, flags, says):
    code, _, line = judge(*GROUND, *flags, heads=())
    assert code in (1, 2)
    assert says in line
