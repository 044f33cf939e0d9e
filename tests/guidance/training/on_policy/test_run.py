"""Runs of on-policy losses with a tiny policy that is rewarded for some words."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from on_policy_cases import SlowWriter, count_wanted, make_config, mark_wanted

from trimtab.guidance.config_file import to_yaml
from trimtab.guidance.errors import DataError
from trimtab.guidance.heads.forms import Head
from trimtab.guidance.heads.manifest import Manifest, Parts
from trimtab.guidance.heads.store import load_head, save_head
from trimtab.guidance.policy import Policy, load_policy
from trimtab.guidance.training.config import TrainConfig
from trimtab.guidance.training.on_policy.collect import Draw
from trimtab.guidance.training.on_policy.guard import HISTORY_FILE
from trimtab.guidance.training.train_head import train_head


@pytest.fixture(scope="module")
def policy(policy_folder: Path) -> Policy:
    return load_policy(policy_folder)


def run(config: TrainConfig, policy: Policy, writer: SlowWriter | None = None) -> Manifest:
    return train_head(config, policy=policy, writer=writer or SlowWriter(policy))


def history(config: TrainConfig) -> list[dict[str, float]]:
    path = config.run_folder / "advantage" / HISTORY_FILE
    return [json.loads(line) for line in path.read_text().splitlines()]


def weights(config: TrainConfig) -> dict[str, torch.Tensor]:
    return load_head(config.head_folder)[0].state_dict()


@pytest.mark.parametrize("loss", ["ppo", "rloo", "grpo", "reinforce"])
@pytest.mark.parametrize(("score", "estimate"), [(count_wanted, "exact"), (mark_wanted, "sampled")])
def test_a_head_learns_to_say_the_rewarded_words(
    loss: str, score: Any, estimate: Any, policy: Policy, policy_folder: Path, tmp_path: Path
):
    config = make_config(policy_folder, tmp_path, loss, kl_estimate=estimate)
    metrics = run(config, policy, SlowWriter(policy, score)).metrics
    assert metrics["score"] > metrics["base_score"] + 0.3
    assert 0.1 < metrics["kl_per_reply"] < 10
    rows = history(config)
    assert [row["iteration"] for row in rows] == list(range(10))
    assert rows[0]["kl_per_reply"] == 0  # an untrained head is the policy
    assert rows[0]["length"] == 5


def test_a_run_that_passes_the_guard_keeps_the_last_head_within_it(
    policy: Policy, policy_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    config = make_config(policy_folder, tmp_path, "reinforce", max_kl=0.3)
    manifest = run(config, policy)
    assert "on_policy.max_kl" in caplog.text
    assert 0 < len(history(config)) < 10
    assert max(row["kl_per_reply"] for row in history(config)) <= 0.3
    assert manifest.metrics["kl_per_reply"] <= 0.3


def test_last_updates_that_pass_the_guard_are_taken_back(
    policy: Policy, policy_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    config = make_config(policy_folder, tmp_path, "reinforce", max_kl=100.0, epochs=1)
    end = run(config, policy).metrics["kl_per_reply"]
    measured = max(row["kl_per_reply"] for row in history(config))
    assert measured < end
    settings = dataclasses.replace(config.on_policy, max_kl=(measured + end) / 2)
    config = dataclasses.replace(config, on_policy=settings)
    assert run(config, policy).metrics["kl_per_reply"] < settings.max_kl
    assert "the last updates passed" in caplog.text
    kept = weights(config)
    run(dataclasses.replace(config, resume=True), policy)
    assert all(torch.equal(weights(config)[name], tensor) for name, tensor in kept.items())


def test_an_adapting_guard_raises_tau_while_the_replies_are_too_far_away(
    policy: Policy, policy_folder: Path, tmp_path: Path
):
    config = make_config(policy_folder, tmp_path, "reinforce", max_kl=0.3, on_max_kl="adapt", epochs=5)
    run(config, policy)
    rows = history(config)
    assert len(rows) == 18
    for before, row in itertools.pairwise(rows):
        assert row["tau"] >= before["tau"] if row["kl_per_reply"] > 0.3 else row["tau"] <= before["tau"]
    assert max(row["tau"] for row in rows) > 2 * rows[0]["tau"]
    free = make_config(policy_folder, tmp_path / "run", "reinforce", epochs=5)
    run(free, policy)
    assert rows[-1]["kl_per_reply"] < 0.7 * history(free)[-1]["kl_per_reply"]


def test_a_head_that_training_starts_from_begins_at_its_scale_times_the_start_strength(
    policy: Policy, policy_folder: Path, tmp_path: Path
):
    config = make_config(policy_folder, tmp_path, "rloo", rank=4)
    parts = Parts(advantage=dataclasses.replace(config.advantage.part(), loss="monte_carlo", scale=3.0))
    head = Head(parts, policy.identity.hidden_size, policy.identity.vocab_size)
    torch.nn.init.normal_(head.advantage.up, std=0.3)
    identity = policy.identity
    manifest = Manifest("old", parts, identity.hidden_size, identity.vocab_size, identity.base_model)
    save_head(tmp_path / "old", head, manifest)
    started = make_config(policy_folder, tmp_path, "rloo", rank=4, max_kl=100.0, start_strength=0.5)
    started = dataclasses.replace(started, start_from=tmp_path / "old")
    begun: list[torch.Tensor] = []

    class Watching(SlowWriter):
        def write(self, head: Head, *args: Any) -> list[Draw]:
            begun.append(head.advantage.up.detach().clone())
            return super().write(head, *args)

    run(started, policy, Watching(policy))
    torch.testing.assert_close(begun[0], 1.5 * head.advantage.up)
    assert history(started)[0]["kl_per_reply"] > 0


class Killed(BaseException):
    pass


class MortalWriter(SlowWriter):
    """Dies in its num_calls-th call."""

    def __init__(self, policy: Policy, num_calls: int) -> None:
        super().__init__(policy, mark_wanted)
        self.num_calls = num_calls

    def write(self, *args: Any) -> list[Draw]:
        if len(self.calls) == self.num_calls:
            raise Killed
        return super().write(*args)


@pytest.mark.parametrize("changes", [{}, {"max_kl": 0.3, "on_max_kl": "adapt"}, {"max_kl": 0.3}])
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(
    changes: dict[str, Any], policy: Policy, policy_folder: Path, tmp_path: Path
):
    configs = []
    for name in ("whole", "resumed"):
        (tmp_path / name).mkdir()
        configs.append(make_config(policy_folder, tmp_path / name, "ppo", passes=2, **changes))
    whole, resumed = configs
    run(whole, policy, SlowWriter(policy, mark_wanted))
    for num_calls in (3, 2):
        with pytest.raises(Killed):
            run(resumed, policy, MortalWriter(policy, num_calls))
        resumed = dataclasses.replace(resumed, resume=True)
    run(resumed, policy, SlowWriter(policy, mark_wanted))
    assert history(resumed) == history(whole)
    for name, tensor in weights(whole).items():
        assert torch.equal(weights(resumed)[name], tensor), name


def test_replies_without_a_reward_are_counted_and_named(policy: Policy, policy_folder: Path, tmp_path: Path):
    def score(tokens: list[int]) -> Any:
        return "the reward is nan" if tokens[0] % 7 == 0 else count_wanted(tokens)

    config = make_config(policy_folder, tmp_path, "rloo")
    with pytest.raises(DataError, match=r"\d+ of 24 replies have no reward, first: prompt \d: the reward is"):
        run(config, policy, SlowWriter(policy, score))
    assert not config.head_folder.exists()


@pytest.mark.parametrize("loss", ["rloo", "ppo"])
def test_replies_without_a_reward_can_be_skipped(
    loss: str, policy: Policy, policy_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    def score(tokens: list[int]) -> Any:
        return "the reward is nan" if tokens[0] % 7 == 0 else count_wanted(tokens)

    config = make_config(policy_folder, tmp_path, loss, on_bad_rows="skip")
    metrics = run(config, policy, SlowWriter(policy, score)).metrics
    assert re.search(r"skipped \d+ of 24 replies", caplog.text)
    assert metrics["score"] > metrics["base_score"]


def test_a_scorer_that_fails_on_most_replies_ends_the_run(
    policy: Policy, policy_folder: Path, tmp_path: Path
):
    config = make_config(policy_folder, tmp_path, on_bad_rows="skip")
    with pytest.raises(DataError, match="24 of 24"):
        run(config, policy, SlowWriter(policy, lambda tokens: "it raised"))


def test_prompts_that_leave_no_room_for_a_reply_are_named(
    policy: Policy, policy_folder: Path, tmp_path: Path
):
    config = make_config(policy_folder, tmp_path, max_tokens=5, on_bad_rows="refuse")
    long = json.dumps({"prompt": " ".join("a" * 125)})
    config.prompts.write_text(config.prompts.read_text() + "\n" + long)
    with pytest.raises(DataError, match=r"1 of .* prompts are longer than"):
        run(dataclasses.replace(config, max_tokens=128), policy)


BAD: Sequence[tuple[dict[str, Any], str]] = [
    ({"score": ""}, "needs something to score replies"),
    ({"loss": "rloo", "num_replies": 1}, "compares replies"),
    ({"num_prompts": 5}, "no whole number of steps of 12"),
    ({"loss": "rloo", "passes": 2}, "on_policy.passes is not read by advantage.loss=rloo"),
    ({"loss": "grpo", "value_weight": 0.5}, "on_policy.value_weight is not read"),
    ({"loss": "reinforce", "clip": 0.1}, "advantage.clip is not read"),
    ({"loss": "dpo"}, "needs --preferences"),
    ({"start_strength": 0.5}, "on_policy.start_strength is of the head"),
]


@pytest.mark.parametrize(("changes", "says"), BAD)
def test_what_a_run_cannot_be_asked_is_told_before_work(
    changes: dict[str, Any], says: str, policy: Policy, policy_folder: Path, tmp_path: Path
):
    config = make_config(policy_folder, tmp_path, **changes)
    with pytest.raises(DataError, match=says):
        run(config, policy)
    assert not config.run_folder.exists()


@pytest.mark.parametrize(
    ("loss", "num_prompts"), [("ppo", 5), pytest.param("rloo", 6, marks=pytest.mark.slow)]
)
def test_two_processes_train_what_one_does(
    loss: str, num_prompts: int, policy: Policy, policy_folder: Path, tmp_path: Path
):
    """Each samples and scores its share of the prompts (3 and 3, or 2 and 3), takes half a batch."""
    changes: dict[str, Any] = {"num_prompts": num_prompts, "num_replies": 4, "epochs": 1, "device": "cpu"}
    alone = make_config(policy_folder, tmp_path, loss, **changes)
    optimiser = dataclasses.replace(alone.advantage.optimiser, batch_size=num_prompts)
    shared = dataclasses.replace(
        alone,
        head_folder=tmp_path / "shared",
        run_folder=tmp_path / "shared run",
        advantage=dataclasses.replace(alone.advantage, optimiser=optimiser),
    )
    alone = dataclasses.replace(alone, advantage=shared.advantage, gradient_accumulation=2)
    train_head(alone, policy=policy, writer=SlowWriter(policy))
    (tmp_path / "shared.yaml").write_text(to_yaml(shared))
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"),
        *(str(Path(__file__).parents[3] / "support/on_policy_process.py"), str(tmp_path / "shared.yaml")),
    ]
    done = subprocess.run(
        command,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    wanted, found = (load_head(c.head_folder, policy.identity) for c in (alone, shared))
    for name, tensor in wanted[0].state_dict().items():
        torch.testing.assert_close(found[0].state_dict()[name], tensor, rtol=0, atol=2e-5)
    for name, figure in wanted[1].metrics.items():
        assert found[1].metrics[name] == pytest.approx(figure, abs=1e-4), name
    histories = [(c.run_folder / "advantage/iterations.jsonl").read_text() for c in (alone, shared)]
    rows = [[json.loads(line) for line in text.splitlines()] for text in histories]
    assert len(rows[0]) == len(rows[1]) > 1
    for one, other in zip(*rows, strict=True):
        assert other == pytest.approx(one, abs=1e-4)
