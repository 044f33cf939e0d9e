"""Feature stores give what the policy gives, interrupted runs go on, and stale ones are refused."""

from __future__ import annotations

import json
import random
import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from trimtab.guidance.data.items import PairItem
from trimtab.guidance.errors import DataError
from trimtab.guidance.features import store as features_store
from trimtab.guidance.features.layout import (
    MANIFEST_FILE,
    FeatureManifest,
    FeaturePlan,
    PositionChoice,
    load_feature_manifest,
    plan_features,
    reply_key,
)
from trimtab.guidance.features.source import (
    Extract,
    FeatureCache,
    FeatureSource,
    Positions,
    StreamedFeatures,
    own_forward,
)
from trimtab.guidance.features.store import StoredFeatures, open_features, remove_features, write_features
from trimtab.guidance.heads.forms import Head
from trimtab.guidance.heads.manifest import AdvantagePart, Parts, ScalarPart
from trimtab.guidance.policy import Policy, load_policy
from trimtab.guidance.text.encoding import EncodedReply
from trimtab.guidance.training.config import TrainConfig
from trimtab.guidance.training.methods import METHODS

KINDS = ("last", "all", "sampled")


@pytest.fixture(scope="module")
def policy(policy_folder: Path) -> Policy:
    return load_policy(policy_folder, device="cpu")


def some_replies(num: int = 30, seed: int = 0) -> list[EncodedReply]:
    dice = random.Random(seed)

    def tokens(most: int) -> tuple[int, ...]:
        return tuple(dice.randrange(4, 27) for _ in range(dice.randint(2, most)))

    return [EncodedReply(tokens(9), tokens(20), is_cut=dice.random() < 0.3) for _ in range(num)]


REPLIES = some_replies()


def plan(kind: str = "all", replies: list[EncodedReply] = REPLIES, **choice: int) -> FeaturePlan:
    """About ten replies to a shard."""
    chosen = PositionChoice(kind, **choice)  # type: ignore[arg-type]
    limit = {"last": 1800, "all": 16_000, "sampled": 8_000}[kind]
    return plan_features(replies, chosen, hidden_size=32, dtype=torch.float32, shard_bytes=limit)


def write(folder: Path, policy: Policy, kind: str = "all", extract: Extract | None = None, **options: bool):
    extract = extract or own_forward(policy)
    return write_features(
        folder, plan(kind), policy.identity.base_model, extract, show_progress=False, **options
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


class Killed(BaseException):
    """Nothing in the code under test may catch it."""


def killed_after(extract: Extract, num_replies: int) -> Extract:
    left = [num_replies]

    def partly(replies: list[EncodedReply], positions: Positions | None) -> Iterator[tuple[int, Tensor]]:
        for found in extract(replies, positions):
            if not left[0]:
                raise Killed
            left[0] -= 1
            yield found

    return partly


def test_a_store_gives_what_the_cache_gives(policy: Policy, tmp_path: Path):
    write(tmp_path / "all", policy)
    stored, cache = open_features(tmp_path / "all", policy), FeatureCache(policy, show_progress=False)
    asked = [REPLIES[3], *REPLIES[::-1]]
    stored.prepare(asked)
    for kept, anew in zip(stored.get(asked), cache.get(asked), strict=True):
        torch.testing.assert_close(kept, anew, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(stored.last(asked), cache.last(asked), rtol=1e-4, atol=1e-5)
    for kept, anew in zip(stored.steps(asked), cache.steps(asked), strict=True):
        assert torch.equal(kept.at, anew.at)
        torch.testing.assert_close(kept.h, anew.h, rtol=1e-4, atol=1e-5)


def test_a_store_of_last_positions_answers_only_for_those(policy: Policy, tmp_path: Path):
    write(tmp_path / "last", policy, "last")
    stored, cache = open_features(tmp_path / "last", policy), FeatureCache(policy, show_progress=False)
    torch.testing.assert_close(stored.last(REPLIES), cache.last(REPLIES), rtol=1e-4, atol=1e-5)
    for ask in (stored.get, stored.steps):
        with pytest.raises(DataError, match=r"last holds only last positions.*--positions all"):
            ask(REPLIES)


def test_a_sampled_store_gives_steps_that_predict_drawn_tokens_and_the_last(policy: Policy, tmp_path: Path):
    write(tmp_path / "some", policy, "sampled")
    stored, cache = open_features(tmp_path / "some", policy), FeatureCache(policy, show_progress=False)
    torch.testing.assert_close(stored.last(REPLIES), cache.last(REPLIES), rtol=1e-4, atol=1e-5)
    for reply, steps, h in zip(REPLIES, stored.steps(REPLIES), cache.get(REPLIES), strict=True):
        assert len(steps.at) == min(16, reply.num_drawn)
        assert steps.at.unique().tolist() == steps.at.tolist()
        assert steps.at.max() < reply.num_drawn
        torch.testing.assert_close(steps.h, h[steps.at], rtol=1e-4, atol=1e-5)
    with pytest.raises(DataError, match="holds only sampled positions"):
        stored.get(REPLIES)


def test_sampled_positions_are_the_seeds_alone():
    def chosen(seed: int) -> list[tuple[int, ...]]:
        return [PositionChoice("sampled", 4, seed).of(reply) for reply in some_replies(seed=9)]

    assert chosen(0) == chosen(0)
    assert chosen(0) != chosen(1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_forecast_is_exact(policy: Policy, tmp_path: Path, kind: str):
    manifest = write(tmp_path / "store", policy, kind)
    written = 0
    for shard in manifest.shards:
        path = tmp_path / "store" / shard.file
        header = int.from_bytes(path.read_bytes()[:8], "little")
        written += path.stat().st_size - 8 - header
    assert written == plan(kind).num_bytes
    assert manifest.num_replies == plan(kind).num_replies == len(REPLIES)
    assert manifest.num_positions == plan(kind).num_positions
    assert len(manifest.shards) == len(plan(kind).shards) > 2


def test_different_replies_have_different_keys_and_each_is_kept_once():
    prompt_longer = EncodedReply((5, 6), (7,))
    keys = {
        reply_key(r) for r in (prompt_longer, EncodedReply((5,), (6, 7)), replace(prompt_longer, is_cut=True))
    }
    assert len(keys) == 3
    assert plan(replies=[*REPLIES, *REPLIES]) == plan()


@pytest.mark.parametrize("limit", ["shard_bytes", "shard_tokens"])
def test_a_shard_holds_no_more_than_an_interruption_may_lose(limit: str):
    whole = plan_features(REPLIES, PositionChoice("last"), hidden_size=32, dtype=torch.float32)
    size = {
        "shard_bytes": whole.shard_bytes,
        "shard_tokens": lambda shard: sum(reply.num_tokens for reply in shard.replies),
    }[limit]
    (only,) = whole.shards
    cut = plan_features(
        REPLIES, PositionChoice("last"), hidden_size=32, dtype=torch.float32, **{limit: size(only) // 4}
    )
    assert 4 <= len(cut.shards) <= 6
    assert all(size(shard) <= size(only) // 4 for shard in cut.shards)
    assert [reply for shard in cut.shards for reply in shard.replies] == list(only.replies)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_replies", [0, 3, 15, 29])
def test_a_killed_run_resumes_to_the_same_bytes(policy: Policy, tmp_path: Path, kind: str, num_replies: int):
    write(tmp_path / "whole", policy, kind)
    with pytest.raises(Killed):
        write(tmp_path / "killed", policy, kind, killed_after(own_forward(policy), num_replies))
    num_whole = len(load_feature_manifest(tmp_path / "killed").shards)
    half = tmp_path / "killed" / f".features-{num_whole:05}.safetensors.new"
    half.write_bytes(b"what a run leaves that is killed while it writes")
    with pytest.raises(DataError, match=r"is incomplete.*--resume"):
        open_features(tmp_path / "killed", policy)
    num_run = []

    def counted(replies: list[EncodedReply], positions: Positions | None) -> Iterator[tuple[int, Tensor]]:
        num_run.append(len(replies))
        yield from own_forward(policy)(replies, positions)

    write(tmp_path / "killed", policy, kind, counted, resume=True)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert num_run == [len(shard.replies) for shard in plan(kind).shards[num_whole:]]


def test_a_run_that_was_complete_is_only_read(policy: Policy, tmp_path: Path):
    write(tmp_path / "store", policy)
    before = contents(tmp_path / "store")
    write(tmp_path / "store", policy, extract=lambda *_: pytest.fail("ran again"), resume=True)
    assert contents(tmp_path / "store") == before


@pytest.mark.parametrize("damage", ["lost", "cut short"])
def test_a_damaged_shard_is_told_and_read_again(policy: Policy, tmp_path: Path, damage: str):
    write(tmp_path / "store", policy)
    before = contents(tmp_path / "store")
    shard = tmp_path / "store" / "features-00001.safetensors"
    if damage == "lost":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(DataError, match=r"features-00001.safetensors is (missing|corrupt).*--resume"):
        open_features(tmp_path / "store", policy)
    write(tmp_path / "store", policy, resume=True)
    assert contents(tmp_path / "store") == before


def test_a_shard_in_the_place_of_another_is_refused(policy: Policy, tmp_path: Path):
    write(tmp_path / "store", policy, "last")
    first, second = (tmp_path / "store" / f"features-0000{i}.safetensors" for i in (0, 1))
    assert first.stat().st_size == second.stat().st_size
    first.write_bytes(second.read_bytes())
    with pytest.raises(DataError, match="is not what the manifest says"):
        open_features(tmp_path / "store", policy)


def test_a_full_disk_ends_in_one_line_and_leaves_what_was_whole(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write(tmp_path / "whole", policy)
    num_calls = []
    write_through = features_store._write_through

    def limited(path: Path, data: bytes) -> int:
        """Of the third shard only the first thousand bytes can be written."""
        num_calls.append(1)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000 if len(num_calls) == 3 else soft, hard))
        try:
            return write_through(path, data)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    monkeypatch.setattr(features_store, "_write_through", limited)
    says = r"features-00002.* cannot be written \(File too large\): .*2 shards before it are whole"
    with pytest.raises(DataError, match=says):
        write(tmp_path / "full", policy)
    assert sorted(contents(tmp_path / "full")) == [
        *(f"features-0000{i}.safetensors" for i in (0, 1)),
        MANIFEST_FILE,
    ]
    monkeypatch.undo()
    write(tmp_path / "full", policy, resume=True)
    assert contents(tmp_path / "full") == contents(tmp_path / "whole")


def test_a_store_that_cannot_fit_is_refused_before_work(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    room = type("Usage", (), {"free": 100_000})
    monkeypatch.setattr(features_store.shutil, "disk_usage", lambda _: room)
    with pytest.raises(DataError, match=r"the disk has 0\.00 GB free"):
        write(tmp_path / "store", policy, extract=lambda *_: pytest.fail("ran"))
    assert not (tmp_path / "store").exists()


STALE = {
    "fingerprint": (
        "f" * 64,
        r"features of tiny \(fingerprint ffffffffffff\) are none of tiny \(fingerprint",
    ),
    "tokenizer_hash": ("f" * 64, "another tokenizer"),
    "template_hash": ("", "another chat template"),
}


@pytest.mark.parametrize("key", STALE)
@pytest.mark.parametrize("resume", [False, True], ids=["opened", "resumed"])
def test_features_of_another_policy_are_refused(policy: Policy, tmp_path: Path, key: str, resume: bool):
    value, says = STALE[key]
    manifest = write(tmp_path, policy)
    replace(manifest, base_model=replace(manifest.base_model, **{key: value})).write(tmp_path)
    with pytest.raises(DataError, match=says):
        write(tmp_path, policy, resume=True) if resume else open_features(tmp_path, policy)


def test_features_in_another_dtype_are_refused(policy: Policy, tmp_path: Path):
    manifest = write(tmp_path, policy)
    replace(manifest, dtype="bfloat16").write(tmp_path)
    with pytest.raises(
        DataError,
        match="read in bfloat16, the policy runs in float32: give trimtab train --dtype bfloat16, or run ",
    ):
        open_features(tmp_path, policy)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (plan("last"), "other positions"),
        (plan(replies=REPLIES[:-1]), "begun with 30 replies, now they are 29"),
        (
            plan(replies=[replace(REPLIES[0], prompt_ids=(9, 9, *REPLIES[0].prompt_ids)), *REPLIES[1:]]),
            "rows",
        ),
    ],
    ids=["positions", "fewer", "others"],
)
def test_a_store_is_not_resumed_with_other_rows_or_positions(
    policy: Policy, tmp_path: Path, other: FeaturePlan, says: str
):
    write(tmp_path, policy)
    before = contents(tmp_path)
    with pytest.raises(DataError, match=says):
        write_features(tmp_path, other, policy.identity.base_model, own_forward(policy), resume=True)
    assert contents(tmp_path) == before


def test_replies_that_a_store_lacks_are_counted(policy: Policy, tmp_path: Path):
    write(tmp_path, policy)
    stored, others = open_features(tmp_path, policy), some_replies(7, seed=5)
    for ask in (stored.prepare, stored.get, stored.last, stored.steps):
        with pytest.raises(
            DataError, match="holds no features of 7 of 9 replies: run trimtab features again"
        ):
            ask([*REPLIES[:2], *others, others[0]])


def test_a_folder_is_not_written_over_unless_asked(policy: Policy, tmp_path: Path):
    store, other = tmp_path / "store", tmp_path / "other"
    write(store, policy)
    with pytest.raises(DataError, match="holds features: resume, overwrite"):
        write(store, policy)
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    for options in ({}, {"resume": True}):
        with pytest.raises(DataError, match="holds no features"):
            write(other, policy, **options)
    remove_features(other)
    assert contents(other) == {"thesis.txt": b"mine"}
    (store / "thesis.txt").write_text("mine")
    remove_features(store)
    assert contents(store) == {"thesis.txt": b"mine"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "corrupt"),
        ("[]", "corrupt"),
        ('{"format": 2}', "format 2 is not known"),
        ('{"format": 1}', "corrupt"),
    ],
)
def test_a_manifest_that_is_none_is_refused(policy: Policy, tmp_path: Path, text: str, says: str):
    (tmp_path / MANIFEST_FILE).write_text(text)
    with pytest.raises(DataError, match=says):
        open_features(tmp_path, policy)


def test_features_that_are_not_finite_are_counted_and_not_kept(policy: Policy, tmp_path: Path):
    def poisoned(replies: list[EncodedReply], positions: Positions | None) -> Iterator[tuple[int, Tensor]]:
        for index, h in own_forward(policy)(replies, positions):
            yield index, h / 0 if index == 1 else h

    with pytest.raises(DataError, match=r"no finite features at \d+ of \d+ positions"):
        write(tmp_path, policy, extract=poisoned)
    assert not load_feature_manifest(tmp_path).shards


def test_a_manifest_reads_back_as_it_was_written(policy: Policy, tmp_path: Path):
    manifest = write(tmp_path, policy, "sampled")
    assert load_feature_manifest(tmp_path) == manifest
    saved = json.loads((tmp_path / MANIFEST_FILE).read_text())
    assert saved["positions"] == {"kind": "sampled", "per_reply": 16, "seed": 0}
    assert manifest == replace(
        FeatureManifest.of(plan("sampled"), policy.identity.base_model), shards=manifest.shards, complete=True
    )


def test_opening_a_store_reads_no_features_into_memory(policy: Policy, tmp_path: Path):
    manifest = write(tmp_path, policy)
    stored = StoredFeatures(tmp_path, manifest, policy)
    (h,) = stored.get(REPLIES[:1])
    with safe_open(tmp_path / manifest.shards[0].file, framework="pt") as tensors:
        whole = tensors.get_tensor("h")
    assert h.untyped_storage().nbytes() >= whole.nbytes, "a view of the mapped file"


@pytest.mark.parametrize(("part", "loss"), [("reward", "bradley_terry"), ("advantage", "dpo")])
def test_gradients_are_the_same_from_memory_from_disk_and_streamed(
    policy: Policy, tmp_path: Path, part: str, loss: str
):
    pairs = [PairItem(a, b) for a, b in zip(REPLIES[:15], REPLIES[15:], strict=True)]
    write(tmp_path, policy)
    sources = (
        FeatureCache(policy, show_progress=False),
        StreamedFeatures(policy),
        open_features(tmp_path, policy),
    )
    cached, *others = (gradients(source, part, loss, pairs) for source in sources)
    assert any(gradient.abs().max() > 1e-3 for gradient in cached)
    for found in others:
        for ours, theirs in zip(found, cached, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def gradients(features: FeatureSource, part: str, loss: str, items: list[PairItem]) -> list[Tensor]:
    """Of the part's parameters from one batch of all items."""
    config = TrainConfig(name="kind", model=Path(), head_folder=Path(), run_folder=Path(), preferences=Path())
    method, vocab_size = METHODS[part][loss], features.policy.identity.vocab_size  # type: ignore[index]
    torch.manual_seed(0)
    head = Head(Parts(AdvantagePart(rank=4), None, ScalarPart("linear")), 32, vocab_size)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(std=0.3)
    objective = method.objective(head, config, features)
    scores, _ = objective(**objective.collate(items))
    method.loss.bind(getattr(config, part))(**scores).per_example.mean().backward()
    return [parameter.grad for parameter in objective.parameters() if parameter.grad is not None]
