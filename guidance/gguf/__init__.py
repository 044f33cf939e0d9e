"""GGUF files: a model in one file, converted once into the folder that transformers reads."""

from __future__ import annotations

from trimtab.guidance.gguf.cache import converted_gguf, installed_gguf, is_gguf

__all__ = ["converted_gguf", "installed_gguf", "is_gguf"]
