"""Toy policy: builds a small language model from nothing, with its tokenizer, judge, heads and figures."""

from __future__ import annotations

from pathlib import Path

HOME = Path(__file__).resolve().parent / "built"
MODEL_DIR = HOME / "model"
HEADS_DIR = HOME / "heads"
