"""Heads on disk: a folder with head.json and head.safetensors. Nothing is unpickled."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from trimtab.guidance.errors import HeadError
from trimtab.guidance.files import whole_folder
from trimtab.guidance.heads.fingerprint import PolicyIdentity, weight_difference
from trimtab.guidance.heads.forms import Head
from trimtab.guidance.heads.manifest import MANIFEST_FILE, TENSORS_FILE, BaseModel, Manifest, load_manifest


def check_destination(folder: Path) -> None:
    """Raises HeadError where saving a head as `folder` would replace something else."""
    if not folder.exists() or (folder / MANIFEST_FILE).is_file():
        return
    if not folder.is_dir() or any(folder.iterdir()):
        raise HeadError(f"{folder} exists and is no head folder: name another folder, or remove it")


def save_head(folder: Path, head: Head, manifest: Manifest) -> None:
    """Writes the head as `folder`, replacing an older one; a failure leaves the old head as it was."""
    check_destination(folder)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in head.state_dict().items()}
    with whole_folder(folder) as new:
        (new / TENSORS_FILE).write_bytes(save(tensors))  # save_file tells of a full disk in its own way
        (new / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")


def load_head(
    folder: Path,
    policy: PolicyIdentity | None = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[Head, Manifest]:
    """Reads a head; given a policy, makes sure that it fits. The advantage is put in `dtype`;
    value and reward stay float32.

    Raises:
        HeadError: absent, corrupt, incomplete, or made for another policy. One line; names folder and fix.
    Warns:
        UserWarning: the policy's tokenizer or chat template is not the one the head was trained with.
    """
    manifest = load_manifest(folder)
    if policy is not None:
        _check_fit(folder, manifest, policy)
    with torch.device("meta"):
        head = Head(manifest.parts, manifest.hidden_size, manifest.vocab_size)
    head.load_state_dict(_read_tensors(folder, head.state_dict()), assign=True)
    head.to(device, torch.float32)
    if head.advantage is not None:
        head.advantage.to(dtype)
    return head.requires_grad_(False).eval(), manifest


def _read_tensors(folder: Path, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    path = folder / TENSORS_FILE
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except FileNotFoundError:
        raise HeadError(f"{path} is missing: copy or train the head again") from None
    except (SafetensorError, OSError) as error:
        raise HeadError(f"{path} is corrupt ({error}): copy or train the head again") from None
    for name, want in expected.items():
        if name not in tensors:
            raise HeadError(f"{path}: tensor {name} is missing: train the head again")
        if tensors[name].shape != want.shape:
            have = list(tensors[name].shape)
            raise HeadError(f"{path}: {name} has shape {have}, {MANIFEST_FILE} says {list(want.shape)}")
        if not tensors[name].is_floating_point() or not tensors[name].isfinite().all():
            raise HeadError(f"{path}: {name} holds numbers that are not finite floats: train the head again")
    unknown = sorted(tensors.keys() - expected.keys())
    if unknown:
        raise HeadError(f"{path}: tensor {unknown[0]} belongs to no part that {MANIFEST_FILE} names")
    return tensors


def _check_fit(folder: Path, manifest: Manifest, policy: PolicyIdentity) -> None:
    trained, served = manifest.base_model, policy.base_model
    fix = f"serve {trained.name}, or train the head on {served.name}"
    for key in ("hidden_size", "vocab_size"):
        theirs, ours = getattr(manifest, key), getattr(policy, key)
        if theirs != ours:
            raise HeadError(
                f"{folder}: head of {trained.name} ({key} {theirs}) does not fit "
                f"{served.name} ({key} {ours}): {fix}"
            )
    if trained.fingerprint != served.fingerprint:
        raise HeadError(
            f"{folder}: head of {trained.name} (fingerprint {trained.fingerprint[:12]}) does not fit "
            f"{served.name} (fingerprint {served.fingerprint[:12]}){_difference(trained, served)}: {fix}"
        )
    if trained.tokenizer_hash != served.tokenizer_hash:
        warnings.warn(f"{folder}: trained with another tokenizer than that of {served.name}", stacklevel=3)
    if trained.template_hash != served.template_hash:
        warnings.warn(f"{folder}: trained with another template than that of {served.name}", stacklevel=3)


def _difference(trained: BaseModel, served: BaseModel) -> str:
    """What is known of two policies of the same sizes and other weights, such as of another precision."""
    if trained.tokenizer_hash != served.tokenizer_hash:
        return ", whose tokenizer is another too"
    difference = weight_difference(trained.sample, served.sample)
    if difference is None:
        return ", of the same sizes and tokenizer, but other weights"
    return (
        f", of the same sizes and tokenizer, but other weights: they differ by {difference:.2g} of their "
        "size (root mean square), as after quantisation or tuning"
    )
