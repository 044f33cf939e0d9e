"""Heads on disk: a folder with head.json and head.safetensors. Nothing is unpickled."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from trimtab.guidance.errors import HeadError, first_line
from trimtab.guidance.files import whole_folder
from trimtab.guidance.heads.fingerprint import PolicyIdentity, weight_difference
from trimtab.guidance.heads.forms import Head
from trimtab.guidance.heads.manifest import MANIFEST_FILE, TENSORS_FILE, BaseModel, Manifest, load_manifest
from trimtab.guidance.json_file import shown_key

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


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
    tensors = _read_tensors(folder, manifest, head.state_dict(), dtype)
    head.load_state_dict(tensors, assign=True)
    head.to(device)
    return head.requires_grad_(False).eval(), manifest


def _read_tensors(
    folder: Path, manifest: Manifest, expected: dict[str, Tensor], dtype: torch.dtype
) -> dict[str, Tensor]:
    """Each in the dtype that it is used in."""
    path = folder / TENSORS_FILE
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except FileNotFoundError:
        raise HeadError(f"{path} is missing: copy or train the head again") from None
    except Exception as error:  # whatever a header that lies makes the reader raise
        raise HeadError(f"{path} is corrupt ({first_line(error)}): copy or train the head again") from error
    unknown = sorted(tensors.keys() - expected.keys())
    if unknown:
        name = shown_key(unknown[0])
        raise HeadError(f"{path}: tensor {name} belongs to no part that {MANIFEST_FILE} names")
    read = {}
    for name, want in expected.items():
        if name not in tensors:
            raise HeadError(f"{path}: tensor {name} is missing: train the head again")
        if tensors[name].shape != want.shape:
            have = list(tensors[name].shape)
            raise HeadError(f"{path}: {name} has shape {have}, {MANIFEST_FILE} says {list(want.shape)}")
        try:
            read[name] = _in_use(name, tensors[name], manifest, dtype)
        except HeadError as error:
            raise HeadError(f"{path}: {name} {error}") from None
    return read


def _in_use(name: str, tensor: Tensor, manifest: Manifest, dtype: torch.dtype) -> Tensor:
    """Raises HeadError for what is not finite, there and where it is used."""
    if tensor.dtype not in _DTYPES:
        raise HeadError(
            f"holds {_name_of(tensor.dtype)}, not floats of 16 bits or more: train the head again"
        )
    is_advantage = name.startswith("advantage.")
    if not tensor.isfinite().all():
        raise HeadError("holds numbers that are not finite: train the head again")
    used = tensor.to(dtype if is_advantage else torch.float32)
    if not used.isfinite().all():
        fix = "train the head again" if used.dtype == torch.float32 else "run with --dtype float32"
        raise HeadError(f"holds numbers that {_name_of(used.dtype)} cannot: {fix}")
    if not is_advantage and not (used / manifest.reward_std).isfinite().all():
        raise HeadError(f"is too large for {MANIFEST_FILE}'s reward_std {manifest.reward_std:g}")
    return used


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
