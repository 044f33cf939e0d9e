"""Scores of many replies, kept as they come, so that scoring that is killed goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from trimtab.guidance.data.rollouts import RolloutRow
from trimtab.guidance.files import write_json_lines
from trimtab.server.scoring.scorer import Score, Scorer


class KeptScores:
    """A file of JSON lines: what the scores are of, then a line for each of the pieces that were scored
    together. Scores of other rows, or by another scorer, are thrown away."""

    def __init__(self, path: Path, scorer: str, rows: Sequence[RolloutRow]) -> None:
        """scorer: all that its scores depend on beside the rows."""
        self._path, self._rows = path, rows
        self._of = {"scorer": scorer, "rows": _digest(rows)}
        self._kept = self._read()

    def score(self, scorer: Scorer) -> list[Score]:
        """Of every row, those that are kept among them. Raises what the scorer raises."""
        size = min(scorer.rows_at_once, len(self._rows))
        scores: list[Score] = []
        with tqdm(total=len(self._rows), desc="scores", unit="reply") as bar:
            for start in range(0, len(self._rows), size):
                rows = self._rows[start : start + size]
                found = self._kept.get(start)
                if found is None or len(found) != len(rows):
                    found = scorer.score(rows)
                    self._write([start, [_plain(score) for score in found]])
                scores += found
                bar.update(len(rows))
        return scores

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)

    def _read(self) -> dict[int, list[Score]]:
        lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.is_file() else []
        told = [entry for entry in map(_entry, lines) if entry is not None]
        if not told or told[0] != self._of:
            told = [self._of]
        write_json_lines(self._path, told)
        return {start: [_score(plain) for plain in scores] for start, scores in told[1:]}

    def _write(self, entry: Any) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def _digest(rows: Sequence[RolloutRow]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row.to_dict(), sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _entry(line: str) -> Any:
    """None for the half of a line that a killed run wrote."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def _plain(score: Score) -> list[Any]:
    return [score.reward, score.token_rewards, score.problem]


def _score(plain: Sequence[Any]) -> Score:
    reward, token_rewards, problem = plain
    return Score(reward, None if token_rewards is None else tuple(token_rewards), problem)
