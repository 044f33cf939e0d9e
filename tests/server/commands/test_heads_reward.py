"""`trimtab heads export-reward` and `import-reward` with a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_models import EOS, SIZES, save_random_head, save_random_model
from transformers import AutoModelForSequenceClassification, LlamaConfig

from trimtab.guidance.features.source import FeatureCache
from trimtab.guidance.heads.forms import Head
from trimtab.guidance.heads.manifest import Manifest, Parts, ScalarPart
from trimtab.guidance.heads.store import load_head, save_head
from trimtab.guidance.policy import load_policy
from trimtab.guidance.text.encoding import ReplyEncoder
from trimtab.guidance.training.held_out import score_ends
from trimtab.server.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy, a head with a linear reward, its export, and rollouts."""
    folder = tmp_path_factory.mktemp("reward")
    policy = load_policy(save_random_model(LlamaConfig(**SIZES), folder / "tiny"))
    identity, parts = policy.identity, Parts(reward=ScalarPart())
    torch.manual_seed(0)
    head = Head(parts, identity.hidden_size, identity.vocab_size)
    torch.nn.init.normal_(head.reward.weight)
    torch.nn.init.constant_(head.reward.bias, 0.75)
    sizes = (identity.hidden_size, identity.vocab_size)
    save_head(folder / "calm", head, Manifest("calm", parts, *sizes, identity.base_model, -1.0, 3.0))
    rows = [{"prompt": f"say {i}", "completion": "abc"[: i % 3 + 1] * (i + 1)} for i in range(8)]
    (folder / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--model", str(folder / "tiny"), "--out", str(folder / "exported")]
    assert main(["heads", "export-reward", str(folder / "calm"), *arguments]) == 0
    return folder


def test_an_export_says_how_to_read_it_and_gives_the_reward(folder: Path):
    model = AutoModelForSequenceClassification.from_pretrained(folder / "exported")
    policy = load_policy(folder / "tiny")
    reply = ReplyEncoder(policy.tokenizer).encode("say 1", "abc")
    assert reply.reply_ids[-1] == EOS
    head, _ = load_head(folder / "calm", policy.identity)
    wanted = score_ends(head.reward, FeatureCache(policy, show_progress=False), [reply])
    logits = model(input_ids=torch.tensor([[*reply.prompt_ids, *reply.reply_ids]])).logits[0]
    torch.testing.assert_close(logits + 0.75, wanted, atol=1e-4, rtol=1e-4)
    card = (folder / "exported" / "README.md").read_text()
    for text in ("LlamaForSequenceClassification", "`<eos>`", "`<pad>`", "0.75", "mean -1", "deviation 3"):
        assert text in card
    assert all(path.stat().st_mode & 0o044 for path in (folder / "exported").iterdir())


def test_an_import_has_the_source_s_units_or_those_of_rollouts(folder: Path, tmp_path: Path, capsys):
    source = ["import-reward", str(folder / "exported"), "--model", str(folder / "tiny"), "--name", "again"]
    assert main(["heads", *source, "--out", str(tmp_path / "a")]) == 0
    _, manifest = load_head(tmp_path / "a")
    assert (manifest.name, manifest.reward_mean, manifest.reward_std) == ("again", -1.0, 3.0)
    assert manifest.trained_on == "imported from exported"
    assert "head again with a reward (mean -1, standard deviation 3)" in capsys.readouterr().out

    rollouts = ("--rollouts", str(folder / "rollouts.jsonl"), "--no-show-progress")
    assert main(["heads", *source, "--out", str(tmp_path / "b"), *rollouts]) == 0
    policy = load_policy(folder / "tiny")
    head, manifest = load_head(tmp_path / "b", policy.identity)
    encoder = ReplyEncoder(policy.tokenizer)
    rows = [json.loads(line) for line in (folder / "rollouts.jsonl").read_text().splitlines()]
    replies = [encoder.encode(row["prompt"], row["completion"]) for row in rows]
    rewards = score_ends(head.reward, FeatureCache(policy, show_progress=False), replies)
    assert manifest.reward_mean == pytest.approx(rewards.mean().item(), abs=1e-4)
    assert manifest.reward_std == pytest.approx(rewards.std(correction=0).item(), abs=1e-4)
    assert manifest.metrics == {"unit_rollouts": 8}


def test_standard_units_are_of_plain_replies_alone(folder: Path, tmp_path: Path, capsys):
    steered = tmp_path / "steered.jsonl"
    rows = [json.loads(line) for line in (folder / "rollouts.jsonl").read_text().splitlines()]
    rows = [row | {"strength": 1.5 * (i < 3)} for i, row in enumerate(rows)]
    steered.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = ["import-reward", str(folder / "exported"), "--model", str(folder / "tiny"), "--name", "again"]
    command = [
        "heads",
        *source,
        "--rollouts",
        str(steered),
        "--no-show-progress",
        "--out",
        str(tmp_path / "a"),
    ]
    assert main(command) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert "3 of 8 rollouts were not drawn from the policy itself (strength 1.5)" in told
    assert "a head's standard units" in told
    assert main([*command, "--on-bad-rows", "skip"]) == 0
    assert load_head(tmp_path / "a")[1].metrics == {"unit_rollouts": 5}


def test_what_cannot_be_done_is_told_in_one_line(folder: Path, tmp_path: Path, capsys):
    mlp = save_random_head(tmp_path, folder / "tiny", "mlp", parts="r")
    other = save_random_model(LlamaConfig(**SIZES), tmp_path / "other", seed=1)
    tiny, calm, exported = folder / "tiny", folder / "calm", folder / "exported"
    out = ("--out", tmp_path / "out")
    capsys.readouterr()
    named = ("--name", "x")
    cases: list[tuple[tuple[object, ...], int, str]] = [
        (("export-reward", mlp, "--model", tiny, *out), 1, "--reward.form linear"),
        (("export-reward", calm, "--model", other, *out), 1, "does not fit other"),
        (("export-reward", calm, "--model", tiny, "--out", calm), 1, "is not empty"),
        (("export-reward", tmp_path / "none", "--model", tiny, *out), 1, "is not a head folder"),
        (("import-reward", exported, "--model", other, *named, *out), 1, "differs from that of other"),
        (("import-reward", tmp_path / "none", "--model", tiny, *named, *out), 1, "is not a folder here"),
        (("import-reward", exported, "--model", tiny, *named, "--out", tiny), 1, "is no head folder"),
        (("import-reward", exported, "--model", tiny, "--name", "X Y", *out), 2, "lower-case letters"),
        (
            ("import-reward", exported, "--model", tiny, *named, *out, "--rollouts", "no.jsonl"),
            1,
            "no.jsonl: no such file",
        ),
    ]
    for args, code, says in cases:
        assert main(["heads", *map(str, args)]) == code, args
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("trimtab: ")
        assert says in line
        assert not (tmp_path / "out").exists()
