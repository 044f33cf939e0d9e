"""Bundled model: its policy, its heads, its judge, and what the heads were measured to do."""

from __future__ import annotations

from pathlib import Path

HOME = Path(__file__).resolve().parent
MODEL_DIR = HOME / "model"
HEADS_DIR = HOME / "heads"
