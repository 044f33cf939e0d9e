"""The setting of LoRA that the tuning prompts choose, read from their evaluation."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean

from trimtab.guidance.errors import DataError

LABEL = "LoRA "


def chosen_lora(report: Path) -> str:
    """Of the settings that reach most of the prices at which curves were compared, the one with the highest
    gold score, averaged over these prices.

    By hand: a reaches 1 and 2 nats with 3 and 4, b with 2 and 6, c only 1 with 9: b.

    Raises DataError where the report is not there, or none of its curves is LoRA's.
    """
    try:
        frontier = json.loads(report.read_text(encoding="utf-8"))["frontier"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{report} tells of no settings of LoRA ({error}): run step evaluation-lora"
        ) from error
    scores: defaultdict[str, list[float]] = defaultdict(list)
    for row in frontier["at_kl"]:
        if row["curve"].startswith(LABEL) and row["score"] == frontier["gold"][0]:
            scores[row["curve"].removeprefix(LABEL)].append(row["estimate"]["mean"])
    if not scores:
        raise DataError(f"{report}: no setting of LoRA reaches a price at which curves are compared")
    return max(scores, key=lambda name: (len(scores[name]), fmean(scores[name])))
