"""Model names: what `smollm2` and FILE.gguf stand for, and what to call a model."""

from __future__ import annotations

from pathlib import Path

from trimtab.guidance.errors import PolicyError, UserError
from trimtab.guidance.gguf import converted_gguf, installed_gguf, is_gguf

DEFAULT_MODEL = "smollm2"
"""SmolLM2-135M-Instruct of the installed package; a folder of this name is ./smollm2."""
_DEFAULT_NAME = "SmolLM2-135M-Instruct"


def find_model(model: str | Path) -> str | Path:
    """A folder or hub id: what a loader of transformers takes. GGUFs are converted at the first call.

    Raises:
        PolicyError: one line: the default model is not installed, or a GGUF cannot be converted.
    """
    if model != DEFAULT_MODEL and not is_gguf(model):
        return model
    try:
        return converted_gguf(installed_gguf() if model == DEFAULT_MODEL else Path(model))
    except UserError as error:
        raise PolicyError(str(error)) from error


def name_of(path: str | Path) -> str:
    """What to call what lies at a path: the last part of where it leads, of `.` too; of a hub id the last."""
    if path == DEFAULT_MODEL:
        return _DEFAULT_NAME
    where = Path(path)
    where = where.resolve() if where.exists() else where
    return (where.stem if is_gguf(where) else where.name) or "model"
