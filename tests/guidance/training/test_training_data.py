"""What training makes of files: which rows count, what rewards rollouts, and in which units a head speaks."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from training_rows import QUICK, make_rows, quick_config, write_rows

from trimtab.guidance.errors import DataError, HeadError
from trimtab.guidance.heads.manifest import load_manifest
from trimtab.guidance.heads.store import load_head
from trimtab.guidance.policy import Policy, load_policy
from trimtab.guidance.training.config import AdvantageConfig, RewardConfig, TrainConfig, ValueConfig
from trimtab.guidance.training.examples import load_examples
from trimtab.guidance.training.train_head import train_head


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_rows(tmp_path)
    return tmp_path


@pytest.fixture
def config(folder: Path, policy_folder: Path) -> TrainConfig:
    return quick_config(folder, policy_folder)


@pytest.fixture(scope="module")
def policy(policy_folder: Path) -> Policy:
    return load_policy(policy_folder)


def on_rollouts(config: TrainConfig, **changes: Any) -> TrainConfig:
    return dataclasses.replace(
        config, preferences=None, rollouts=config.run_folder.parent.parent / "rollouts.jsonl", **changes
    )


def add_rows(path: Path, *rows: dict[str, Any]) -> None:
    path.write_text(path.read_text() + "".join(json.dumps(row) + "\n" for row in rows))


def test_rows_over_the_policys_context_are_left_out_and_counted(
    config: TrainConfig, policy: Policy, caplog: pytest.LogCaptureFixture
):
    """The tiny policy reads 128 tokens."""
    long = {"prompt": " ".join("a" * 200), "chosen": "a c", "rejected": "a b"}
    add_rows(config.preferences, long, long | {"chosen": "c c"})
    examples = load_examples(config, policy)
    assert len(examples.pairs.train) + len(examples.pairs.held_out) == 22
    assert "left out 2 rows longer than the policy's context of 128 tokens" in caplog.text


def test_a_token_that_the_policy_does_not_have_is_a_bad_row(config: TrainConfig, policy: Policy):
    row = {"prompt": "a b", "completion": "c", "token_ids": [8, 999], "reward": 1}
    runs = on_rollouts(config)
    add_rows(runs.rollouts, row)
    with pytest.raises(DataError, match="1 bad rows, first prompt 'a b': token id 999 is not"):
        load_examples(runs, policy)
    skipping = dataclasses.replace(runs, on_bad_rows="skip")
    assert len(load_examples(skipping, policy).rollouts.train) > 0


def test_sampled_tokens_are_taken_as_they_are_with_one_end(config: TrainConfig, policy: Policy):
    """Without an end, cut or not, the template's is appended, and nobody drew it."""
    done = policy.tokenizer.convert_tokens_to_ids("<done>")
    runs = on_rollouts(config)
    row = {"prompt": "a b", "completion": "c", "reward": 1.0}
    tokens = [{"token_ids": [8, 9]}, {"token_ids": [8, 3]}, {"token_ids": [7, 8], "is_cut": True}]
    write_rows(runs.rollouts, [row | t for t in tokens] + [row | {"prompt": "a d"}])
    rollouts = load_examples(runs, policy).rollouts
    replies = [item.reply for item in (*rollouts.train, *rollouts.held_out)]
    found = {(reply.reply_ids, reply.is_cut) for reply in replies if len(reply.reply_ids) > 1}
    assert {((8, 9, done), True), ((8, 3), False), ((7, 8, done), True)} <= found


@pytest.mark.parametrize(("rows", "form"), [("auto", "chat"), ("text", "text")])
def test_a_head_says_as_what_its_rows_were_read(config: TrainConfig, policy: Policy, caplog, rows, form):
    """22 prompts of 22 pairs, each counted once."""
    config = dataclasses.replace(config, parts=("reward",), rows=rows)
    manifest = train_head(config, policy=policy)
    assert load_manifest(config.head_folder).rows == manifest.rows == form
    assert ("22 prompts are strings and became one user message each" in caplog.text) == (form == "chat")
    pairs = load_examples(config, policy).pairs
    prompts = {pair.chosen.prompt_ids[:2] for side in (pairs.train, pairs.held_out) for pair in side}
    begins = tuple(policy.tokenizer.convert_tokens_to_ids(["<bos>", "<turn>"]))
    assert (prompts == {begins}) == (form == "chat")


def test_going_on_from_a_head_of_the_other_form_is_told(config: TrainConfig, policy: Policy, caplog):
    config = dataclasses.replace(config, parts=("reward",), rows="text")
    train_head(config, policy=policy)
    other = config.head_folder.parent / "other"
    again = dataclasses.replace(config, rows="chat", start_from=config.head_folder, head_folder=other)
    train_head(again, policy=policy)
    assert "was trained on texts" in caplog.text


def test_unpaired_rows_get_mismatched_replies_for_kto_alone(config: TrainConfig, policy: Policy):
    unpaired = config.preferences.with_name("unpaired.jsonl")
    kto = AdvantageConfig(loss="kto")
    runs = dataclasses.replace(config, preferences=None, unpaired=unpaired, parts=("advantage",))
    (plain, matched) = (
        load_examples(dataclasses.replace(runs, advantage=a), policy) for a in (AdvantageConfig(), kto)
    )
    assert all(item.mismatched is None for item in plain.unpaired.train)
    assert all(item.mismatched.prompt_ids == item.reply.prompt_ids for item in matched.unpaired.train)
    assert matched.rollouts == plain.rollouts


def test_one_prompt_alone_cannot_be_held_out(config: TrainConfig, policy: Policy):
    write_rows(config.preferences, [{"prompt": "a", "chosen": "b", "rejected": "d"}])
    with pytest.raises(DataError, match=r"no train pairs with held_out=0\.2"):
        load_examples(config, policy)


def test_rollouts_own_rewards_set_the_units_of_a_head_without_a_reward(config: TrainConfig, policy: Policy):
    runs = on_rollouts(config, parts=("value",))
    manifest = train_head(runs, policy=policy)
    rewards = torch.tensor([item.reward for item in load_examples(runs, policy).rollouts.held_out])
    assert manifest.reward_mean == pytest.approx(rewards.mean().item(), rel=1e-5)
    assert manifest.reward_std == pytest.approx(rewards.std(correction=0).item(), rel=1e-5)


def test_a_reward_and_a_value_in_different_units_are_refused(config: TrainConfig, policy: Policy):
    both = dataclasses.replace(on_rollouts(config), preferences=config.preferences, parts=("reward", "value"))
    with pytest.raises(DataError, match=r"different units: give --reward\.loss regression"):
        train_head(both, policy=policy)
    manifest = train_head(dataclasses.replace(both, reward_from="head"), policy=policy)
    assert "value_r2" in manifest.metrics


def test_rollouts_without_a_reward_are_counted_and_refused_or_left_out(config: TrainConfig, policy: Policy):
    runs = on_rollouts(config, parts=("value",))
    add_rows(runs.rollouts, *({"prompt": f"{a} a a", "completion": "c"} for a in "abdefghij"))
    with pytest.raises(DataError, match=r"of \d+ rollouts have no reward: score them"):
        train_head(runs, policy=policy)
    train_head(dataclasses.replace(runs, on_bad_rows="skip"), policy=policy)
    write_rows(runs.rollouts, [{"prompt": p, "completion": "c d"} for p in "abdefg"])
    with pytest.raises(DataError, match="rollouts have no reward and the head has no reward part"):
        train_head(runs, policy=policy)


@pytest.mark.parametrize(
    ("reward", "more", "is_refused"),
    [
        ({"reward": 2.0}, {}, True),
        ({"reward": 2.0}, {"reward_from": "head"}, False),
        ({"token_rewards": [1.0, 0.0]}, {}, True),
        ({"token_rewards": None}, {}, False),
        ({"token_rewards": None}, {"reward_from": "reply"}, True),
    ],
    ids=["of replies", "unread", "of tokens", "credited elsewhere", "of replies, by tokens"],
)
def test_rewards_that_are_the_same_for_all_teach_nothing(
    config: TrainConfig, policy: Policy, reward: dict[str, Any], more: dict[str, Any], is_refused: bool
):
    """None: (1, 0) or (0, 1), by turns, of the same sum."""
    path = config.run_folder.parent.parent / "alike.jsonl"
    rows = [
        {"prompt": f"a {'b' * (1 + n % 12)}", "completion": "c", "token_ids": [10, 11], "is_cut": True}
        | {key: value or [float(n % 2), float(n % 2 == 0)] for key, value in reward.items()}
        for n in range(24)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    alike = dataclasses.replace(on_rollouts(config), rollouts=path, **more)
    if is_refused:
        with pytest.raises(DataError, match="all 24 replies have the same reward, which teaches nothing"):
            load_examples(alike, policy)
    else:
        rollouts = load_examples(alike, policy).rollouts
        assert len(rollouts.train) + len(rollouts.held_out) == 24


def test_rows_whose_reward_is_no_number_are_named(config: TrainConfig, policy: Policy):
    runs = on_rollouts(config, parts=("value",))
    add_rows(runs.rollouts, {"prompt": "a", "completion": "c", "reward": float("nan")})
    with pytest.raises(
        DataError, match="1 bad rows, first line 45: reward must hold finite numbers, got nan"
    ):
        train_head(runs, policy=policy)


def test_a_head_goes_on_from_another_and_keeps_its_other_parts(config: TrainConfig, policy: Policy):
    first = dataclasses.replace(config, parts=("reward", "advantage"))
    train_head(first, policy=policy)
    more = quick_config(
        config.preferences.parent,
        config.model,
        "more",
        start_from=first.head_folder,
        parts=("value", "advantage"),
        advantage=dataclasses.replace(config.advantage, loss="ipo"),
    )
    manifest = train_head(more, policy=policy)
    before, after = (load_head(c.head_folder)[0].state_dict() for c in (first, more))
    assert torch.equal(after["reward.weight"], before["reward.weight"])
    assert not torch.equal(after["advantage.up"], before["advantage.up"])
    assert (
        torch.nn.functional.cosine_similarity(after["advantage.down"], before["advantage.down"]).min() > 0.5
    )
    assert manifest.parts.advantage.loss == "ipo"
    assert manifest.parts.reward.loss == "bradley_terry"
    assert manifest.parts.value is not None


def test_a_part_of_another_form_than_the_one_to_go_on_from_is_refused(config: TrainConfig, policy: Policy):
    first = dataclasses.replace(config, parts=("advantage",))
    train_head(first, policy=policy)
    other = dataclasses.replace(config.advantage, rank=5)
    again = dataclasses.replace(first, start_from=first.head_folder, advantage=other)
    with pytest.raises(HeadError, match=r"its advantage has rank 4, not 5: give --advantage\.rank 4"):
        train_head(again, policy=policy)


@pytest.mark.parametrize(
    ("files", "settings", "measured"),
    [
        (("rankings",), {"parts": ("reward",), "reward": {"loss": "ranked"}}, "reward_accuracy"),
        (
            ("unpaired",),
            {"parts": ("reward", "advantage"), "reward": {"loss": "good_bad"}, "advantage": {"loss": "kto"}},
            "label_advantage_accuracy",
        ),
        (
            ("rollouts",),
            {"reward": {"loss": "regression"}, "advantage": {"loss": "monte_carlo"}},
            "reward_correlation",
        ),
        (
            ("rollouts",),
            {
                "parts": ("value", "advantage"),
                "advantage": {"loss": "distil", "top_k": 4, "num_prefixes": 2},
                "value": {"loss": "distributional", "low": 0.0, "high": 3.0, "bins": 7},
            },
            "value_r2",
        ),
    ],
)
def test_other_files_train_other_methods_end_to_end(
    config: TrainConfig, policy: Policy, files: tuple[str, ...], settings: dict[str, Any], measured: str
):
    folder = config.preferences.parent
    kinds = {"reward": RewardConfig, "value": ValueConfig, "advantage": AdvantageConfig}
    learned = {"optimiser": QUICK}
    shapes = {"reward": {}, "value": {"width": 8, **learned}, "advantage": {"rank": 4, **learned}}
    built = {
        key: kinds[key](**value, **shapes[key]) if key in kinds else value for key, value in settings.items()
    }
    paths = {file: folder / f"{file}.jsonl" for file in files}
    manifest = train_head(dataclasses.replace(config, preferences=None, **paths, **built), policy=policy)
    assert measured in manifest.metrics
    head, stored = load_head(config.head_folder, policy.identity)
    assert stored == manifest
    if manifest.parts.advantage is not None and manifest.parts.advantage.loss != "kto":
        assert manifest.parts.advantage.scale != 1
    assert any(parameter.any() for parameter in head.parameters())


def test_a_full_disk_leaves_no_half_head_and_resuming_trains_nothing_again(
    config: TrainConfig, policy: Policy, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trimtab.guidance.heads.store.save", full)
    with pytest.raises(HeadError, match=r"No space left on device.*make room and resume"):
        train_head(config, policy=policy)
    assert not config.head_folder.exists()
    monkeypatch.undo()
    monkeypatch.setattr("trimtab.guidance.training.loop.PartTrainer.compute_loss", full)
    train_head(dataclasses.replace(config, resume=True), policy=policy)
    assert config.head_folder.is_dir()
