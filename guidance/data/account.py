"""Account of loaded rows: counts and names what in them is odd."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from trimtab.guidance.data.rows import Preference, Ranking, Rollout, Unpaired

_FAR = 8.0  # robust standard deviations: a normal sample of any size has none so far out
_FEWEST = 5  # numbers that have a spread to speak of


@dataclass(frozen=True, slots=True)
class Outliers:
    """Numbers that lie far from the others. extreme: the farthest."""

    name: str
    count: int
    extreme: float
    middle: float

    def __str__(self) -> str:
        verb = "lies" if self.count == 1 else "lie"
        return (
            f"{_count(self.count, self.name)} {verb} more than {_FAR:g} robust standard deviations from the "
            f"median {self.middle:.4g}, the most extreme {self.extreme:.4g}"
        )


@dataclass(frozen=True, slots=True)
class RowAccount:
    """kind: of rows. num_ties: rows left out because no reply is preferred; first_tie: where, and why.

    num_space_only: pairs whose replies differ by white space only. num_duplicates: rows that an earlier one
    equals. one_sided: all labels are the same, this one. outliers: of rewards or margins.
    unread: columns that held something and were not read. margins: the lowest and highest, where there are.
    """

    kind: str
    format: str
    num_rows: int
    num_bad: int = 0
    num_ties: int = 0
    first_tie: str = ""
    num_space_only: int = 0
    num_duplicates: int = 0
    one_sided: bool | None = None
    outliers: Outliers | None = None
    margins: tuple[float, float] | None = None
    unread: tuple[str, ...] = ()

    def findings(self) -> list[str]:
        """What a user ought to know before training on these rows, each with its count."""
        found = [
            (self.num_ties, f"{_count(self.num_ties, 'tie')} left out (first {self.first_tie})"),
            (
                self.num_space_only,
                f"{_count(self.num_space_only, 'pair')} whose replies differ by white space only",
            ),
            (self.num_duplicates, _count(self.num_duplicates, "duplicate")),
            (self.one_sided is not None, f"all labels are {str(self.one_sided).lower()}"),
            (self.outliers is not None, str(self.outliers)),
        ]
        return [text for count, text in found if count]

    def __str__(self) -> str:
        told = [f"{self.num_rows} {self.kind} ({self.format} rows)"]
        if self.margins is not None:
            told.append(f"margins {self.margins[0]:.3g}…{self.margins[1]:.3g}")
        if self.unread:
            told.append(f"not read: {', '.join(self.unread)}")
        return "; ".join([*told, *self.findings()])


@dataclass(slots=True)
class Accountant:
    """Looks at rows one by one as they are parsed."""

    num_space_only: int = 0
    num_duplicates: int = 0
    labels: set[bool] = field(default_factory=set)
    rewards: list[float] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    _seen: set[bytes] = field(default_factory=set)

    def take(self, row: Any, raw: Mapping[str, Any]) -> None:
        """raw: the row as it stood in the file; samples of one reply are told apart by its numbers."""
        origin = (raw.get("sample"), raw.get("seed")) if isinstance(row, Rollout) else ()
        key = hashlib.blake2b(repr((row, origin)).encode("utf-8", "replace"), digest_size=16).digest()
        self.num_duplicates += key in self._seen
        self._seen.add(key)
        look = _LOOKS.get(type(row))
        if look is not None:
            look(self, row)

    def preference(self, row: Preference) -> None:
        self.num_space_only += _squeezed(row.chosen) == _squeezed(row.rejected)
        if row.margin is not None:
            self.margins.append(row.margin)

    def ranking(self, row: Ranking) -> None:
        self.num_space_only += len(set(map(_squeezed, row.responses))) < len(set(row.responses))

    def label(self, row: Unpaired) -> None:
        self.labels.add(row.label)

    def rollout(self, row: Rollout) -> None:
        per_token = None if row.token_rewards is None else math.fsum(row.token_rewards)
        reward = per_token if row.reward is None else row.reward
        if reward is not None:
            self.rewards.append(reward)

    def account(
        self,
        kind: str,
        format_name: str,
        rows: Sequence[Any],
        *,
        bad: Sequence[str],
        ties: Sequence[str],
        unread: Sequence[str],
    ) -> RowAccount:
        return RowAccount(
            kind,
            format_name,
            len(rows),
            len(bad),
            len(ties),
            ties[0] if ties else "",
            self.num_space_only,
            self.num_duplicates,
            next(iter(self.labels)) if len(self.labels) == 1 else None,
            outliers("reward", self.rewards) or outliers("margin", self.margins),
            (min(self.margins), max(self.margins)) if self.margins else None,
            tuple(unread),
        )


_LOOKS: dict[type[Any], Callable[[Accountant, Any], None]] = {
    Preference: Accountant.preference,
    Ranking: Accountant.ranking,
    Unpaired: Accountant.label,
    Rollout: Accountant.rollout,
}


def outliers(name: str, numbers: Sequence[float]) -> Outliers | None:
    """Numbers farther than 8 of 1.4826 · median |x − median| from the median.

    Where more than half of the numbers are the median itself, the spread is that of the others, so that
    rare rewards of one size are none.
    """
    if len(numbers) < _FEWEST:
        return None
    middle = median(numbers)
    away = [abs(number - middle) for number in numbers]
    spread = 1.4826 * (median(away) or median([*_above_zero(away)] or [0.0]))
    far = [number for number in numbers if abs(number - middle) > _FAR * spread]
    if not far or spread == 0:
        return None
    return Outliers(name, len(far), max(far, key=lambda number: abs(number - middle)), middle)


def _above_zero(numbers: Sequence[float]) -> Iterator[float]:
    return (number for number in numbers if number > 0)


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"
