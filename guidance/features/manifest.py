"""What a feature store says about itself: `features.json`, by which a stale one is recognised."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimtab.guidance.errors import DataError
from trimtab.guidance.features.layout import FeaturePlan, PositionChoice, ShardPlan
from trimtab.guidance.heads.manifest import BaseModel

MANIFEST_FILE = "features.json"
FORMAT = 1
SAME = "resume with the same files and options, overwrite it, or name another folder"


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
        path = folder / MANIFEST_FILE
        text = json.dumps(dataclasses.asdict(self), indent=2) + "\n"
        part = path.with_suffix(".part")
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)


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
            f"{folder}: features were read in {manifest.dtype}, the policy runs in {dtype}: run trimtab "
            f"features again with --dtype {dtype}"
        )


def _parse(saved: dict[str, Any]) -> FeatureManifest:
    shards = tuple(Shard(**shard) for shard in saved.pop("shards"))
    positions = PositionChoice(**saved.pop("positions"))
    return FeatureManifest(BaseModel(**saved.pop("base_model")), positions=positions, shards=shards, **saved)
