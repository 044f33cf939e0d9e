"""Bundled model: where it lies with its heads."""

from __future__ import annotations

from pathlib import Path

HOME = Path(__file__).resolve().parents[2] / "examples" / "toy" / "built"
MODEL_DIR = HOME / "model"
HEADS_DIR = HOME / "heads"
