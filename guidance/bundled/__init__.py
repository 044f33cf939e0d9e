"""The model that comes with the repository: its conversations, its policy, its judge, its weights."""

from __future__ import annotations

from pathlib import Path

HOME = Path(__file__).resolve().parent
MODEL_DIR = HOME / "model"
HEADS_DIR = HOME / "heads"
