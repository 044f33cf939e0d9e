"""Feature store: features on disk, written shard by shard and mapped into memory to train on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from trimtab.guidance.errors import DataError
from trimtab.guidance.features.layout import (
    KEY_BYTES,
    MANIFEST_FILE,
    SAME,
    FeatureManifest,
    FeaturePlan,
    Shard,
    ShardPlan,
    check_fit,
    keys_hash,
    load_feature_manifest,
    reply_key,
)
from trimtab.guidance.features.source import Extract, Steps, all_steps
from trimtab.guidance.files import whole_file
from trimtab.guidance.heads.manifest import BaseModel
from trimtab.guidance.policy import Policy
from trimtab.guidance.text.encoding import EncodedReply

SPARE_BYTES = 2**20  # for headers and the manifest


@dataclass(frozen=True, slots=True)
class _Mapped:
    """A shard's h [N, d] and at i32[N], views of the file."""

    h: Tensor
    at: Tensor


class StoredFeatures:
    """A FeatureSource over a folder that `trimtab features` wrote."""

    def __init__(self, folder: Path, manifest: FeatureManifest, policy: Policy) -> None:
        """Raises DataError where a shard is not what the manifest says."""
        self.folder, self.manifest, self.policy = folder, manifest, policy
        self._places: dict[bytes, tuple[_Mapped, int, int]] = {}
        for shard in manifest.shards:
            self._map(shard)

    def take(self, other: StoredFeatures) -> None:
        """Also holds what the other store of the same policy and choice of positions does from now on."""
        assert (other.policy, other.manifest.positions) == (self.policy, self.manifest.positions)
        self._places |= other._places

    def prepare(self, replies: Sequence[EncodedReply]) -> None:
        """See FeatureSource. Raises DataError that counts the replies that the store does not hold."""
        different = dict.fromkeys(replies)
        num_missing = sum(reply_key(reply) not in self._places for reply in different)
        if num_missing:
            raise DataError(
                f"{self.folder} holds no features of {num_missing} of {len(different)} replies: run trimtab "
                "features again with these files"
            )

    def get(self, replies: Sequence[EncodedReply]) -> list[Tensor]:
        """See FeatureSource. Raises DataError where the store does not hold all positions of the replies."""
        self._require("all")
        return [found.h for found in self._find(replies)]

    def last(self, replies: Sequence[EncodedReply]) -> Tensor:
        """See FeatureSource; every store can answer. Raises DataError for replies that it does not hold."""
        return torch.stack([found.h[-1] for found in self._find(replies)])

    def steps(self, replies: Sequence[EncodedReply]) -> list[Steps]:
        """See FeatureSource. Raises DataError where the store holds only last positions."""
        self._require("all", "sampled")
        if self.manifest.positions.kind == "all":
            return [all_steps(found.h) for found in self._find(replies)]
        return [Steps(found.h[:-1], found.at[:-1].long()) for found in self._find(replies)]

    def _find(self, replies: Sequence[EncodedReply]) -> list[_Mapped]:
        try:
            places = [self._places[reply_key(reply)] for reply in replies]
        except KeyError:
            self.prepare(replies)
            raise
        return [_Mapped(shard.h[start:end], shard.at[start:end]) for shard, start, end in places]

    def _require(self, *kinds: str) -> None:
        kind = self.manifest.positions.kind
        if kind not in kinds:
            raise DataError(
                f"{self.folder} holds only {kind} positions, and this method reads "
                f"{' or '.join(kinds)}: run trimtab features again with --positions {kinds[0]}"
            )

    def _map(self, shard: Shard) -> None:
        path = self.folder / shard.file
        try:
            if path.stat().st_size != shard.num_bytes:
                raise DataError(f"{path} is corrupt (its size is wrong): run trimtab features with --resume")
            with safe_open(path, framework="pt") as tensors:
                mapped = _Mapped(tensors.get_tensor("h"), tensors.get_tensor("at"))
                keys = tensors.get_tensor("keys").numpy().tobytes()
                ends = tensors.get_tensor("counts").cumsum(0).tolist()
        except FileNotFoundError:
            raise DataError(f"{path} is missing: run trimtab features with --resume") from None
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path} is corrupt ({error}): run trimtab features with --overwrite") from error
        if keys_hash(keys) != shard.keys or mapped.h.shape != (
            shard.num_positions,
            self.manifest.hidden_size,
        ):
            raise DataError(f"{path} is not what the manifest says: run trimtab features with --overwrite")
        for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            key = keys[number * KEY_BYTES : (number + 1) * KEY_BYTES]
            self._places[key] = (mapped, start, end)


def open_features(folder: Path, policy: Policy) -> StoredFeatures:
    """The store in `folder`, which must be complete and of this policy.

    Raises:
        DataError: no store, an interrupted one, one with corrupt shards, or one of another policy, tokenizer,
            chat template or dtype.
    """
    manifest = load_feature_manifest(folder)
    dtype = str(policy.lm_head.dtype).removeprefix("torch.")
    check_fit(folder, manifest, policy.identity.base_model, dtype)
    if not manifest.complete:
        num_read = sum(shard.num_replies for shard in manifest.shards)
        raise DataError(
            f"{folder} is incomplete, {num_read} of {manifest.num_replies} replies: "
            "run trimtab features with --resume"
        )
    return StoredFeatures(folder, manifest, policy)


def write_features(
    folder: Path,
    plan: FeaturePlan,
    base_model: BaseModel,
    extract: Extract,
    *,
    resume: bool = False,
    show_progress: bool = True,
) -> FeatureManifest:
    """Reads what the plan asks for and writes it as `folder`. Each shard is a call of `extract`.

    resume: keep the whole shards of a run that was interrupted; else the folder must hold no store yet.

    Raises:
        DataError: the folder holds something else, the disk has no room, or runs full in the midst; what
            was written before stays whole.
    """
    manifest = _begin(folder, plan, base_model, resume)
    progress = tqdm(
        total=plan.num_replies,
        initial=sum(shard.num_replies for shard in manifest.shards),
        desc="features",
        unit="reply",
        disable=not show_progress,
    )
    with progress:
        for index in range(len(manifest.shards), len(plan.shards)):
            tensors = _read(plan.shards[index], plan, extract, progress)
            manifest = _keep(folder, manifest, plan.shards[index], index, tensors)
    if not manifest.complete:
        manifest = replace(manifest, complete=True)
        manifest.write(folder)
    return manifest


def check_destination(folder: Path, *, resume: bool) -> None:
    """Raises DataError where writing a store as `folder` would mix it with something else."""
    if not folder.exists():
        return
    if (folder / MANIFEST_FILE).is_file():
        if not resume:
            raise DataError(f"{folder} holds features: resume, overwrite, or name another folder")
    elif not folder.is_dir() or any(folder.iterdir()):
        raise DataError(f"{folder} exists and holds no features: name another folder, or remove it")


def remove_features(folder: Path) -> None:
    """Removes a store's files, and the folder if nothing else is in it; of another folder nothing."""
    if not (folder / MANIFEST_FILE).is_file():
        return
    (folder / MANIFEST_FILE).unlink()  # first, so that no half of a store looks like one
    for path in [*folder.glob("features-*.safetensors"), *folder.glob(".*.new")]:
        path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


def _begin(folder: Path, plan: FeaturePlan, base_model: BaseModel, resume: bool) -> FeatureManifest:
    check_destination(folder, resume=resume)
    manifest = FeatureManifest.of(plan, base_model)
    if (folder / MANIFEST_FILE).is_file():
        before = load_feature_manifest(folder)
        before.check_same_work(folder, manifest)
        manifest = _whole_shards(folder, plan, before)
    _check_room(folder, sum(plan.shard_bytes(shard) for shard in plan.shards[len(manifest.shards) :]))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        manifest.write(folder)
    except OSError as error:
        raise DataError(f"{folder} cannot be written ({error.strerror}): name another folder") from error
    return manifest


def _whole_shards(folder: Path, plan: FeaturePlan, before: FeatureManifest) -> FeatureManifest:
    """The manifest with its leading shards that are on disk as it says; the plan must have them too."""
    whole: list[Shard] = []
    for shard, planned in zip(before.shards, plan.shards, strict=False):
        if not shard.is_of(planned):
            raise DataError(
                f"{folder}: was begun with other rows than these, or by a version that cut them otherwise "
                f"({shard.file} holds others): {SAME}"
            )
        path = folder / shard.file
        if not path.is_file() or path.stat().st_size != shard.num_bytes:
            break
        whole.append(shard)
    return replace(before, shards=tuple(whole), complete=len(whole) == len(plan.shards))


def _check_room(folder: Path, num_bytes: int) -> None:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < num_bytes + SPARE_BYTES:
        raise DataError(
            f"{folder}: needs {num_bytes / 1e9:.2f} GB and the disk has {free / 1e9:.2f} GB free: "
            "make room, keep fewer positions, or train with --stream"
        )


def _read(shard: ShardPlan, plan: FeaturePlan, extract: Extract, progress: tqdm) -> dict[str, Tensor]:
    """h [N, d] of a shard's N positions, at i32[N], and of its n replies counts i32[n] and keys u8[n, 32]."""
    h = torch.empty(shard.num_positions, plan.hidden_size, dtype=plan.dtype)
    counts = torch.tensor([len(positions) for positions in shard.positions], dtype=torch.int32)
    ends = counts.cumsum(0).tolist()
    for index, found in extract(shard.replies, shard.positions):
        h[ends[index] - len(found) : ends[index]] = found
        progress.update()
    num_poisoned = int((~h.isfinite()).any(1).sum())
    if num_poisoned:
        raise DataError(
            f"the policy gives no finite features at {num_poisoned} of {len(h)} positions in {plan.dtype}: "
            "read them in bfloat16 or float32"
        )
    return {
        "h": h,
        "at": torch.tensor([t for positions in shard.positions for t in positions], dtype=torch.int32),
        "counts": counts,
        "keys": torch.frombuffer(bytearray(shard.keys), dtype=torch.uint8).view(-1, KEY_BYTES),
    }


def _keep(
    folder: Path, manifest: FeatureManifest, plan: ShardPlan, index: int, tensors: dict[str, Tensor]
) -> FeatureManifest:
    """Writes a shard, and then says so."""
    path = folder / f"features-{index:05}.safetensors"
    try:
        with whole_file(path) as new:
            size = _write_through(new, save(tensors))
        shard = Shard(path.name, len(plan.replies), plan.num_positions, size, keys_hash(plan.keys))
        manifest = replace(manifest, shards=(*manifest.shards, shard))
        manifest.write(folder)
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({error.strerror}): make room and resume; "
            f"{index} shards before it are whole"
        ) from error
    return manifest


def _write_through(path: Path, data: bytes) -> int:
    """Not safetensors' own writer: killed, that leaves a file of a random name behind."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return len(data)
