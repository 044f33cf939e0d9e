"""Replies for on-policy losses from our own engine."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from on_policy_cases import make_config
from tiny_models import SIZES, VOCAB_SIZE, save_random_head, save_random_model
from transformers import AutoModelForCausalLM, LlamaConfig

from trimtab.guidance.data.items import PromptItem
from trimtab.guidance.errors import UserError
from trimtab.guidance.features.source import StreamedFeatures
from trimtab.guidance.heads.forms import Head
from trimtab.guidance.heads.manifest import Parts
from trimtab.guidance.policy import Policy, load_policy
from trimtab.guidance.training.config import TrainConfig
from trimtab.guidance.training.objectives.base import fetch, lay_out
from trimtab.guidance.training.objectives.tilt import Tilt, tilt_terms
from trimtab.guidance.training.on_policy.collect import Draw
from trimtab.server.cli import main
from trimtab.server.rollouts.learner import EngineWriter
from trimtab.server.rollouts.sample import EncodedPrompt, SamplePlan, sample_rollouts

SCORES = """
def vowels(prompt, reply):
    return float(sum(letter in "aeiou" for letter in reply))

def odd_by_token(prompt, reply, tokens):
    return [float(bool(token) and ord(token[0]) % 2) for token in tokens]

def answered(prompts, completions, answer):
    return answer

def unanswered(completions, **columns):
    return [None] * len(completions)

def never(prompt, reply):
    return float("nan")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(LlamaConfig(**SIZES), tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def policy(folder: Path) -> Policy:
    return load_policy(folder)


@pytest.fixture(autouse=True)
def _scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "letter_scores.py").write_text(SCORES)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.fixture
def config(folder: Path, tmp_path: Path) -> TrainConfig:
    return make_config(folder, tmp_path, score="function:letter_scores:vowels", max_tokens=12)


def random_head(config: TrainConfig, policy: Policy, form: str = "lowrank") -> Head:
    torch.manual_seed(3)
    part = dataclasses.replace(config.advantage, form=form).part()
    head = Head(Parts(advantage=part), policy.identity.hidden_size, policy.identity.vocab_size)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return head


def prompts(policy: Policy, count: int = 5) -> list[PromptItem]:
    texts = [f"say {i}" for i in range(count)]
    return [PromptItem(text, tuple(policy.tokenizer(text)["input_ids"])) for text in texts]


@pytest.mark.parametrize("form", ["tied", "lowrank"])
def test_the_kl_of_drawn_replies_is_what_the_engine_measured(form: str, config: TrainConfig, policy: Policy):
    config = dataclasses.replace(config, advantage=dataclasses.replace(config.advantage, form=form))
    writer, head = EngineWriter.load(config, policy), random_head(config, policy, form)
    items = prompts(policy)
    draws = writer.write(head, 1.0, items, 3, seed=7)
    assert [draw.prompt for draw in draws] == [i for i in range(5) for _ in range(3)]
    batch = lay_out(fetch(StreamedFeatures(policy), [draw.rollout.reply for draw in draws]))
    kl = tilt_terms(Tilt(head.advantage, policy), batch["h"], batch["tokens"]).kl
    plan = SamplePlan(3, 12, seed=7, heads=(("learner", 1.0),), strength=1.0)
    encoded = [EncodedPrompt(i, item.prompt, item.prompt_ids) for i, item in enumerate(items)]
    rows = sample_rollouts(writer.engine, encoded, plan)
    assert [row.token_ids for row in rows] == [
        draw.rollout.reply.reply_ids[: draw.rollout.reply.num_drawn] for draw in draws
    ]
    measured = sum(row.kl for row in rows)
    assert measured > 1
    assert kl.sum().item() == pytest.approx(measured, rel=1e-3)


def test_replies_follow_from_weights_and_seed_alone(config: TrainConfig, policy: Policy):
    writer, items = EngineWriter.load(config, policy), prompts(policy)
    plain = Head(Parts(advantage=config.advantage.part()), 32, VOCAB_SIZE)
    head = random_head(config, policy, config.advantage.form)
    first = writer.write(head, 1.0, items, 2, seed=7)
    assert writer.write(plain, 1.0, items, 2, seed=7) != first
    assert writer.write(head, 1.0, items, 2, seed=8) != first
    assert writer.write(head, 1.0, items, 2, seed=7) == first
    assert writer.write(head, 0.0, items, 2, seed=7) == writer.write(plain, 1.0, items, 2, seed=7)
    assert all(draw.rollout.reward is not None for draw in first)
    assert writer.write(head, 1.0, items[2:], 2, seed=7, first=2) == first[4:]  # another process's share
    assert [Draw.from_json(draw.to_json()) for draw in first] == first


def test_a_reward_part_named_by_its_folder_scores(config: TrainConfig, policy: Policy, tmp_path: Path):
    judge = save_random_head(tmp_path / "heads", Path(config.model), "judge", parts="r")
    settings = dataclasses.replace(config.on_policy, score=f"reward:{judge}")
    config = dataclasses.replace(config, on_policy=settings)
    draws = EngineWriter.load(config, policy).write(
        random_head(config, policy, config.advantage.form), 1.0, prompts(policy), 2, seed=1
    )
    assert len({draw.rollout.reward for draw in draws}) > 2


def test_engine_and_scorer_run_on_the_policys_weights_and_leave_its_modules_alone(
    config: TrainConfig, policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    judge = save_random_head(tmp_path / "heads", Path(config.model), "judge", parts="r")
    settings = dataclasses.replace(config.on_policy, score=f"reward:{judge}")
    config = dataclasses.replace(config, on_policy=settings)
    ids = torch.tensor([prompts(policy)[0].prompt_ids])
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)  # nothing is loaded again
    before = policy.model(ids).logits
    writer = EngineWriter.load(config, policy)
    writer.write(random_head(config, policy, config.advantage.form), 1.0, prompts(policy), 2, seed=1)
    assert torch.equal(policy.model(ids).logits, before)
    served = {id(weight) for weight in writer.engine.policy.model.parameters()}
    assert served == {id(weight) for weight in policy.model.parameters()}
    assert not set(writer.engine.policy.model.modules()) & set(policy.model.modules())


def test_a_batch_function_scores_with_columns_of_the_prompts(config: TrainConfig, tmp_path: Path, capsys):
    rows = [{"prompt": f"say {i}", "answer": float(i)} for i in range(12)]
    config.prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folders = ("--head-folder", str(tmp_path / "heads/vowels"), "--run-folder", str(tmp_path / "run"))
    assert main(["train", *flags(config), "function:letter_scores:answered", *folders]) == 0
    metrics = json.loads((tmp_path / "heads/vowels/head.json").read_text())["metrics"]
    assert metrics["score"] == pytest.approx(metrics["base_score"])  # it is the answer, whatever the reply
    capsys.readouterr()
    assert main(["train", *flags(config), "function:letter_scores:unanswered", *folders]) == 1
    assert "was left without a reward" in capsys.readouterr().err
    plain = ("--format", "trl", *folders)
    assert main(["train", *flags(config), "function:letter_scores:vowels", *plain]) == 1
    assert "no column answer" in capsys.readouterr().err


def test_a_scorer_that_is_not_there_is_told(config: TrainConfig, policy: Policy):
    settings = dataclasses.replace(config.on_policy, score="function:letter_scores:consonants")
    with pytest.raises(UserError, match="consonants"):
        EngineWriter.load(dataclasses.replace(config, on_policy=settings), policy)


def flags(config: TrainConfig) -> list[str]:
    return [
        *("--name", "vowels", "--model", str(config.model), "--prompts", str(config.prompts)),
        *("--parts", "advantage", "--advantage.loss", "rloo", "--advantage.optimiser.batch-size", "24"),
        *("--advantage.optimiser.learning-rate", "0.02", "--advantage.form", "lowrank", "--no-show-progress"),
        *(
            "--on-policy.num-prompts",
            "6",
            "--on-policy.num-replies",
            "16",
            "--on-policy.max-tokens",
            "12",
            "--on-policy.score",
        ),
    ]


def test_the_command_trains_a_head_on_a_functions_scores(config: TrainConfig, tmp_path: Path, capsys):
    folders = ("--head-folder", str(tmp_path / "heads/vowels"), "--run-folder", str(tmp_path / "run"))
    assert main(["train", *flags(config), "function:letter_scores:odd_by_token", *folders]) == 0
    metrics = json.loads((tmp_path / "heads/vowels/head.json").read_text())["metrics"]
    assert metrics["score"] > metrics["base_score"] + 0.5
    assert "metrics.kl_per_reply" in capsys.readouterr().out


def test_a_function_that_gives_nan_is_counted(config: TrainConfig, tmp_path: Path, capsys):
    folders = ("--head-folder", str(tmp_path / "heads/vowels"), "--run-folder", str(tmp_path / "run"))
    assert main(["train", *flags(config), "function:letter_scores:never", *folders]) == 1
    told = capsys.readouterr().err
    assert "96 of 96 replies have no reward, first: prompt 0 sample 0: the reward is nan" in told
    assert not (tmp_path / "heads/vowels").exists()
