"""Layout of a feature store: which positions of which replies lie in which shards, and features.json, which
says so and by which a stale store is recognised."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from trimtab.guidance.errors import DataError
from trimtab.guidance.files import write_text
from trimtab.guidance.heads.manifest import BaseModel
from trimtab.guidance.text.encoding import EncodedReply

PositionKind = Literal["last", "all", "sampled"]
MANIFEST_FILE = "features.json"
FORMAT = 1
SAME = "resume with the same files and options, overwrite it, or name another folder"
SHARD_BYTES = 2**28
SHARD_TOKENS = 2**20  # to run the policy over, which is what an interruption loses
KEY_BYTES = 32
INT_BYTES = 4  # of a position, and of a reply's number of positions


@dataclass(frozen=True, slots=True)
class PositionChoice:
    """Which of s_0 … s_T are kept of each reply.

    kind: `last` is s_T, all that a reward part reads; `all`; `sampled` is s_T and per_reply positions, drawn
    evenly with the seed from those that predict a drawn token.
    """

    kind: PositionKind = "all"
    per_reply: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("last", "all", "sampled"):
            raise ValueError(f"positions must be last, all or sampled, got {self.kind!r}")
        if self.per_reply < 1:
            raise ValueError(f"positions per reply must be at least 1, got {self.per_reply}")

    def __str__(self) -> str:
        if self.kind == "sampled":
            return f"sampled, {self.per_reply} per reply with seed {self.seed}"
        return self.kind

    def of(self, reply: EncodedReply) -> tuple[int, ...]:
        """t of each s_t that is kept, ascending; the last is always T."""
        last = len(reply.reply_ids)
        if self.kind == "all":
            return tuple(range(last + 1))
        if self.kind == "last":
            return (last,)
        dice = random.Random(reply_key(reply) + str(self.seed).encode())
        steps = range(reply.num_drawn)
        return (*sorted(dice.sample(steps, min(self.per_reply, len(steps)))), last)


def reply_key(reply: EncodedReply) -> bytes:
    """SHA-256 over the tokens of prompt and reply, where one ends, and whether the reply was cut."""
    parts = (len(reply.prompt_ids), reply.is_cut, *reply.prompt_ids, *reply.reply_ids)
    return hashlib.sha256(np.array(parts, dtype="<i8").tobytes()).digest()


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """Consecutive replies of a plan with their positions, as one file holds them."""

    replies: tuple[EncodedReply, ...]
    positions: tuple[tuple[int, ...], ...]

    @property
    def num_positions(self) -> int:
        return sum(len(positions) for positions in self.positions)

    @property
    def keys(self) -> bytes:
        return b"".join(reply_key(reply) for reply in self.replies)


@dataclass(frozen=True, slots=True)
class FeaturePlan:
    """Everything that decides a store's bytes but the policy's weights. d: the policy's hidden size."""

    choice: PositionChoice
    shards: tuple[ShardPlan, ...]
    hidden_size: int
    dtype: torch.dtype

    @property
    def num_replies(self) -> int:
        return sum(len(shard.replies) for shard in self.shards)

    @property
    def num_positions(self) -> int:
        return sum(shard.num_positions for shard in self.shards)

    @property
    def num_bytes(self) -> int:
        """Of all tensors; each shard's header adds some hundred bytes."""
        return sum(self.shard_bytes(shard) for shard in self.shards)

    def shard_bytes(self, shard: ShardPlan) -> int:
        return sum(_reply_bytes(len(p), self.hidden_size, self.dtype) for p in shard.positions)


def plan_features(
    replies: Sequence[EncodedReply],
    choice: PositionChoice,
    *,
    hidden_size: int,
    dtype: torch.dtype,
    shard_bytes: int = SHARD_BYTES,
    shard_tokens: int = SHARD_TOKENS,
) -> FeaturePlan:
    """Each different reply once, in the order given, in shards of at most shard_bytes and of prompts and
    replies of at most shard_tokens (or of one reply)."""
    kept = [(reply, choice.of(reply)) for reply in dict.fromkeys(replies)]
    sizes = [_reply_bytes(len(positions), hidden_size, dtype) for _, positions in kept]
    lengths = [reply.num_tokens for reply, _ in kept]
    shards = []
    for start, end in _cut(sizes, shard_bytes, lengths, shard_tokens):
        shards.append(ShardPlan(*(tuple(column) for column in zip(*kept[start:end], strict=True))))
    return FeaturePlan(choice, tuple(shards), hidden_size, dtype)


def _cut(
    sizes: Sequence[int], most_bytes: int, lengths: Sequence[int], most_tokens: int
) -> Iterator[tuple[int, int]]:
    start = num_bytes = num_tokens = 0
    for at, (size, length) in enumerate(zip(sizes, lengths, strict=True)):
        if at > start and (num_bytes + size > most_bytes or num_tokens + length > most_tokens):
            yield start, at
            start, num_bytes, num_tokens = at, 0, 0
        num_bytes += size
        num_tokens += length
    if sizes:
        yield start, len(sizes)


def _reply_bytes(num_positions: int, hidden_size: int, dtype: torch.dtype) -> int:
    return num_positions * (hidden_size * dtype.itemsize + INT_BYTES) + KEY_BYTES + INT_BYTES


@dataclass(frozen=True, slots=True)
class Shard:
    """A file that is whole. num_bytes: of the file. keys: SHA-256 of the digests of its replies."""

    file: str
    num_replies: int
    num_positions: int
    num_bytes: int
    keys: str

    def is_of(self, plan: ShardPlan) -> bool:
        return self.keys == keys_hash(plan.keys) and self.num_positions == plan.num_positions


@dataclass(frozen=True, slots=True)
class FeatureManifest:
    """num_replies, num_positions: of the store when it is complete. shards: those written so far."""

    base_model: BaseModel
    hidden_size: int
    dtype: str
    positions: PositionChoice
    num_replies: int
    num_positions: int
    shards: tuple[Shard, ...] = ()
    complete: bool = False
    format: int = field(default=FORMAT)

    @classmethod
    def of(cls, plan: FeaturePlan, base_model: BaseModel) -> FeatureManifest:
        """Of a store that has no shard yet."""
        dtype = str(plan.dtype).removeprefix("torch.")
        counts = plan.num_replies, plan.num_positions
        return cls(base_model, plan.hidden_size, dtype, plan.choice, *counts)

    def check_same_work(self, folder: Path, now: FeatureManifest) -> None:
        """Raises DataError where going on with `now` would mix two stores in one folder."""
        check_fit(folder, self, now.base_model, now.dtype)
        if self.positions != now.positions:
            raise DataError(
                f"{folder}: was begun with other positions ({self.positions}, now {now.positions}): {SAME}"
            )
        for name in ("num_replies", "num_positions"):
            before, asked = getattr(self, name), getattr(now, name)
            if before != asked:
                what = name.removeprefix("num_")
                raise DataError(f"{folder}: was begun with {before} {what}, now they are {asked}: {SAME}")

    def write(self, folder: Path) -> None:
        """Replaces the folder's manifest at once."""
        write_text(folder / MANIFEST_FILE, json.dumps(dataclasses.asdict(self), indent=2) + "\n")


def keys_hash(keys: bytes) -> str:
    """SHA-256 over the digests of a shard's replies."""
    return hashlib.sha256(keys).hexdigest()


def load_feature_manifest(folder: Path) -> FeatureManifest:
    """Raises DataError: absent, not JSON, of another format, or with fields that are none of ours."""
    path = folder / MANIFEST_FILE
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        version = saved.get("format")
        if version != FORMAT:
            raise DataError(f"{path}: format {version!r} is not known here: run trimtab features again")
        return _parse(saved)
    except FileNotFoundError:
        raise DataError(
            f"{folder} holds no {MANIFEST_FILE}: name a folder that trimtab features wrote"
        ) from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is corrupt ({error}): run trimtab features again") from error


def check_fit(folder: Path, manifest: FeatureManifest, base_model: BaseModel, dtype: str) -> None:
    """Raises DataError where the features are of another policy, tokenizer, template or dtype."""
    kept = manifest.base_model
    again = "run trimtab features again, or name the folder of this policy's features"
    if kept.fingerprint != base_model.fingerprint:
        raise DataError(
            f"{folder}: features of {kept.name} (fingerprint {kept.fingerprint[:12]}) are none of "
            f"{base_model.name} (fingerprint {base_model.fingerprint[:12]}): {again}"
        )
    for key, what in (("tokenizer_hash", "tokenizer"), ("template_hash", "chat template")):
        theirs, ours = getattr(kept, key), getattr(base_model, key)
        if theirs != ours:
            raise DataError(
                f"{folder}: features were read with another {what} ({theirs[:12] or 'none'}) than that of "
                f"{base_model.name} ({ours[:12] or 'none'}): {again}"
            )
    if manifest.dtype != dtype:
        raise DataError(
            f"{folder}: features were read in {manifest.dtype}, the policy runs in {dtype}: give "
            f"trimtab train --dtype {manifest.dtype}, or run trimtab features again with --dtype {dtype}"
        )


def _parse(saved: dict[str, Any]) -> FeatureManifest:
    shards = tuple(Shard(**shard) for shard in saved.pop("shards"))
    positions = PositionChoice(**saved.pop("positions"))
    return FeatureManifest(BaseModel(**saved.pop("base_model")), positions=positions, shards=shards, **saved)
