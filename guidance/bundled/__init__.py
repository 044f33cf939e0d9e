"""Bundled heads: where those lie that come with the default model, each a folder named after it."""

from __future__ import annotations

from pathlib import Path

HEADS_DIR = Path(__file__).resolve().parent / "heads"
