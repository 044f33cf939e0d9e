"""Features on disk, mapped into memory, so that a store larger than memory can be trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trimtab.guidance.errors import DataError
from trimtab.guidance.features.layout import KEY_BYTES, reply_key
from trimtab.guidance.features.manifest import (
    FeatureManifest,
    Shard,
    check_fit,
    keys_hash,
    load_feature_manifest,
)
from trimtab.guidance.features.source import Steps, all_steps
from trimtab.guidance.policy import Policy
from trimtab.guidance.text.encoding import EncodedReply


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
