"""Which files a published head consists of."""

from __future__ import annotations

from pathlib import Path

from trimtab.guidance.heads.manifest import MANIFEST_FILE, TENSORS_FILE

CARD_FILE = "README.md"
PICTURES_FOLDER = "evaluation"
PATTERNS = (MANIFEST_FILE, TENSORS_FILE, CARD_FILE, f"{PICTURES_FOLDER}/*.png")
"""Nothing else is written, fetched or replaced."""


def published_files(folder: Path) -> list[Path]:
    """Those of PATTERNS that the folder holds."""
    return [path for pattern in PATTERNS for path in sorted(folder.glob(pattern)) if path.is_file()]
