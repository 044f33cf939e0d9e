"""Bundled heads: those that come with the default model, and how it is sampled."""

from __future__ import annotations

from pathlib import Path

_HOME = Path(__file__).resolve().parent
HEADS_DIR = _HOME / "heads"
GENERATION_CONFIG = _HOME / "generation_config.json"
"""Sampling defaults of the default model, whose GGUF has none: at temperature 1 so small a model rambles."""
