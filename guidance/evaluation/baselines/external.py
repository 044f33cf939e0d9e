"""External curves: read points that were judged, or replies that were sampled, elsewhere."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.guidance.errors import DataError
from trimtab.guidance.evaluation.curve import Curve, CurvePoint, ScoreSummary
from trimtab.guidance.evaluation.replies import MeasuredReply
from trimtab.guidance.json_file import load_json
from trimtab.guidance.statistics import Estimate


@dataclass(frozen=True, slots=True)
class External:
    """Either points that are judged already, or replies to the frontier's prompts that still are to be."""

    name: str
    points: tuple[CurvePoint, ...] = ()
    replies: tuple[tuple[float, tuple[MeasuredReply, ...]], ...] = ()

    def curve(self, points: Sequence[CurvePoint]) -> Curve:
        return Curve(self.name, "external", "scale", tuple(points))


def load_external(path: Path, numbers: Mapping[int, int]) -> External:
    """Reads {label, points: [...]} as JSON. A point is one of two:

    {scale, kl, scores: {name: number, or {mean, low, high}}}: judged elsewhere; kl a number or {mean, low,
    high} too. {scale, prompt_ids, texts, kls, is_cut?, samples?, token_ids?, base_logprobs?}: replies to rows
    of the prompt file, as `trimtab train --lora` writes them; those to prompts that are not judged here are
    left out.

    numbers: rows of the prompt file that are judged here -> their number here.

    Raises:
        DataError: neither; names the file, the point and the key.
    """
    data = load_json(path)
    points = data.get("points") if isinstance(data, dict) else None
    if not isinstance(points, list) or not points or not all(isinstance(p, dict) for p in points):
        raise DataError(f'{path}: must hold {{"label": …, "points": [{{…}}, …]}}')
    name = str(data.get("label", path.stem))
    if all("texts" in point for point in points):
        replies = tuple(
            (_knob(p, i), tuple(_replies(p, f"{path}: point {i}", numbers))) for i, p in enumerate(points)
        )
        if not all(given for _, given in replies):
            raise DataError(f"{path}: a point has no reply to any of the {len(numbers)} prompts judged here")
        return External(name, replies=replies)
    return External(name, tuple(_point_of_file(p, i, f"{path}: point {i}") for i, p in enumerate(points)))


def _knob(point: dict[str, Any], index: int) -> float:
    knob = point.get("scale", point.get("knob", index + 1))
    return float(knob) if isinstance(knob, int | float) else float(index + 1)


def _replies(point: dict[str, Any], where: str, numbers: Mapping[int, int]) -> list[MeasuredReply]:
    columns = {key: _list(point, key, where) for key in ("prompt_ids", "texts", "kls")}
    prompts = columns["prompt_ids"]
    columns |= {
        "is_cut": point.get("is_cut") or [False] * len(prompts),
        "samples": point.get("samples") or _counted(prompts),
        "token_ids": point.get("token_ids") or [()] * len(prompts),
        "base_logprobs": point.get("base_logprobs") or [math.nan] * len(prompts),
    }
    if len({len(column) for column in columns.values()}) != 1:
        raise DataError(f"{where}: {', '.join(columns)} must be of one length")
    return [
        MeasuredReply(
            numbers[prompt],
            str(text),
            tuple(token_ids),
            _finite(kl, "kls", where),
            "length" if is_cut else "stop",
            base_logprob=base_logprob,
            sample=sample,
        )
        for prompt, text, kl, is_cut, sample, token_ids, base_logprob in zip(*columns.values(), strict=True)
        if prompt in numbers
    ]


def _counted(prompts: Sequence[Any]) -> list[int]:
    """The number of each reply among those of its prompt."""
    seen: Counter[Any] = Counter()
    counted = []
    for prompt in prompts:
        counted.append(seen[prompt])
        seen[prompt] += 1
    return counted


def _list(point: dict[str, Any], key: str, where: str) -> list[Any]:
    value = point.get(key)
    if not isinstance(value, list):
        raise DataError(f"{where}: {key} must be a list")
    return value


def _point_of_file(point: dict[str, Any], index: int, where: str) -> CurvePoint:
    scores = point.get("scores")
    if "kl" not in point or not isinstance(scores, dict) or not scores:
        raise DataError(f"{where}: needs kl and scores {{name: number}}, or texts, kls and prompt_ids")
    return CurvePoint(
        _knob(point, index),
        _estimate(point["kl"], "kl", where),
        {str(name): ScoreSummary(_estimate(value, str(name), where)) for name, value in scores.items()},
        int(point.get("num_replies", 0)),
    )


def _estimate(value: Any, key: str, where: str) -> Estimate:
    if isinstance(value, dict):
        mean = _finite(value.get("mean"), key, where)
        ends = (_finite(value.get(end, mean), key, where) for end in ("low", "high"))
        return Estimate(mean, *ends)
    number = _finite(value, key, where)
    return Estimate(number, number, number)


def _finite(value: Any, key: str, where: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise DataError(f"{where}: {key} must be a finite number, got {value!r}")
    return float(value)
