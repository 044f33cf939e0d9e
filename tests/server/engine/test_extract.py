"""Features by the engine's runner against the policy's own forward."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_models import SIZES, save_random_model
from torch import Tensor
from transformers import Gemma2Config, LlamaConfig, MistralConfig, PretrainedConfig

from trimtab.guidance.errors import DataError
from trimtab.guidance.features.layout import PositionChoice, plan_features
from trimtab.guidance.features.source import Positions, own_forward
from trimtab.guidance.features.store import write_features
from trimtab.guidance.policy import load_policy
from trimtab.guidance.text.encoding import EncodedReply
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.extract import RunnerExtract

CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "mistral with a sliding window": MistralConfig(**SIZES, head_dim=8, sliding_window=9),
    "gemma2, whose tail is not linear": Gemma2Config(
        **SIZES, head_dim=8, sliding_window=9, query_pre_attn_scalar=8, attn_logit_softcapping=0.5
    ),
}


def some_replies(num: int = 24, num_prompts: int = 5, seed: int = 0) -> list[EncodedReply]:
    """Several to a prompt, of every length up to the context of 128."""
    rng = random.Random(seed)
    prompts = [tuple(rng.randrange(250) for _ in range(rng.randint(1, 60))) for _ in range(num_prompts)]
    return [
        EncodedReply(rng.choice(prompts), tuple(rng.randrange(250) for _ in range(rng.randint(1, 68))))
        for _ in range(num)
    ]


def make(folder: Path, **options: object) -> RunnerExtract:
    config = EngineConfig(folder, block_size=8, cuda_graphs="off", **options)  # type: ignore[arg-type]
    return RunnerExtract.from_config(config)


def read(
    extract: RunnerExtract, replies: list[EncodedReply], positions: Positions | None = None
) -> list[Tensor]:
    found = dict(extract(replies, positions))
    assert sorted(found) == list(range(len(replies)))
    return [found[index] for index in range(len(replies))]


def assert_close(got: list[Tensor], want: list[Tensor], tolerance: float = 1e-4) -> None:
    for ours, theirs in zip(got, want, strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", CONFIGS)
def test_features_equal_the_policys_own_forward(name: str, tmp_path: Path):
    folder = save_random_model(CONFIGS[name], tmp_path)
    replies = some_replies()
    own = dict(own_forward(load_policy(folder, device="cpu"))(replies, None))
    got = read(make(folder, max_num_batched_tokens=64), replies)
    assert_close(got, [own[i] for i in range(len(replies))])


@pytest.mark.parametrize(
    "options",
    [
        {"max_num_batched_tokens": 16, "max_num_seqs": 4},
        {"prefix_caching": False},
        {"num_blocks": 24, "max_num_seqs": 12, "max_num_batched_tokens": 24},
        {"strict": True},
        {"padding": "buckets"},
    ],
    ids=str,
)
def test_every_engine_option_gives_the_same_features(options: dict[str, object], llama_folder: Path):
    replies = some_replies(seed=1)
    assert_close(read(make(llama_folder, **options), replies), read(make(llama_folder), replies))


def test_asked_positions_are_rows_of_all_of_them(llama_folder: Path):
    replies, rng = some_replies(seed=2), random.Random(3)
    positions = [
        sorted(rng.sample(range(len(reply.reply_ids) + 1), rng.randint(1, len(reply.reply_ids))))
        for reply in replies
    ]
    extract = make(llama_folder, max_num_batched_tokens=64)
    everything = read(extract, replies)
    got = read(extract, replies, positions)
    assert_close(got, [h[at] for h, at in zip(everything, positions, strict=True)])


def test_the_same_replies_give_the_same_bits_whatever_ran_before(llama_folder: Path):
    replies = some_replies(seed=4)
    extract = make(llama_folder)
    first = read(extract, replies)
    read(extract, some_replies(seed=5))
    assert all(torch.equal(a, b) for a, b in zip(read(extract, replies), first, strict=True))


def test_a_prompt_that_replies_share_is_run_once(llama_folder: Path, monkeypatch: pytest.MonkeyPatch):
    prompt = tuple(range(64))
    replies = [EncodedReply(prompt, (100 + i, 7, 257)) for i in range(6)]
    num_tokens = []
    extract = make(llama_folder)
    run = extract._runner.run
    monkeypatch.setattr(
        extract._runner, "run", lambda step: (num_tokens.append(step.num_tokens), run(step))[1]
    )
    read(extract, replies)
    # Whole blocks of 8 are shared up to the first position that is read, which is the prompt's last.
    assert sum(num_tokens) == 67 + 5 * (67 - 56)


def test_features_can_be_differentiated_through(llama_folder: Path):
    (h,) = read(make(llama_folder), some_replies(1))
    weight = torch.ones(h.shape[1], requires_grad=True)
    (h @ weight).sum().backward()
    assert weight.grad is not None


def test_replies_longer_than_the_context_are_counted_and_refused(llama_folder: Path):
    long = EncodedReply(tuple(range(100)), tuple(range(29)))
    with pytest.raises(DataError, match="1 of 25 replies are longer than the 128 tokens"):
        next(make(llama_folder)([*some_replies(), long]))
    (h,) = read(make(llama_folder), [EncodedReply(long.prompt_ids, long.reply_ids[:-1])])
    assert len(h) == 29


def test_a_store_whose_reading_was_killed_resumes_to_the_same_bytes(llama_folder: Path, tmp_path: Path):
    replies = some_replies(60, seed=6)
    plan = plan_features(
        replies, PositionChoice("all"), hidden_size=32, dtype=torch.float32, shard_bytes=40_000
    )
    assert len(plan.shards) > 4

    def write(folder: Path, stop_at: int | None = None, **options: bool) -> dict[str, bytes]:
        extract, calls = make(llama_folder), itertools.count()

        def stopped(replies: list[EncodedReply], positions: Positions) -> Iterator[tuple[int, Tensor]]:
            found = extract(replies, positions)
            if next(calls) == stop_at:
                yield next(found)
                raise KeyboardInterrupt
            yield from found

        base_model = extract.policy.identity.base_model
        write_features(folder, plan, base_model, stopped, show_progress=False, **options)
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    whole = write(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "killed", stop_at=2)
    assert write(tmp_path / "killed", resume=True) == whole


def test_no_more_of_the_cache_is_used_than_the_longest_replies_of_a_step_need(tmp_path: Path):
    """However many replies are read one after the other: two rows of at most 24 tokens need six blocks of 8,
    and two more for the token after each."""
    extract = make(save_random_model(CONFIGS["llama"], tmp_path), max_num_seqs=2, max_num_batched_tokens=32)
    replies = [EncodedReply(tuple(range(i, i + 14)), tuple(range(i, i + 10))) for i in range(20)]
    wanted = dict(extract(replies))
    cache = extract._runner.cache
    assert cache.num_blocks > 9
    assert not any(keys[9:].any() for keys in cache.keys)
    for index in (0, 19):
        ((_, alone),) = extract([replies[index]])
        torch.testing.assert_close(alone, wanted[index])
