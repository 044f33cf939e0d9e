"""Plain rollouts, drawn from the policy itself, told from steered, sharpened or truncated ones.

Apart from `rollouts`, which needs pyarrow: flags are parsed with what is here.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from trimtab.guidance.errors import DataError
from trimtab.guidance.text.prompt_form import made_by

logger = logging.getLogger(__name__)


class Drawn(Protocol):
    @property
    def departure(self) -> str: ...


Item = TypeVar("Item", bound=Drawn)


def departure(
    *,
    strength: float | None = None,
    kl: float | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
) -> str:
    """In which way a reply was not drawn from π₀, "" where it was. None: not said.

    Only π₀ has the returns that V forecasts and Q is centred under, and the spread that standard units are
    of: a tilt, a temperature other than 1 and a truncation each draw from another distribution.
    """
    if strength or (kl or 0.0) > 0:
        return f"strength {strength:g}" if strength else f"{kl:.3g} nats of KL"
    if temperature is not None and temperature != 1:
        return f"temperature {temperature:g}"
    return f"top_p {top_p:g}" if top_p is not None and top_p < 1 else ""


def stated_sampling(path: Path) -> dict[str, float]:
    """temperature and top_p as the metadata of a Parquet file of rollouts state them for all its rows; empty
    where they do not, or the rows say it themselves."""
    schema, stated = made_by(path)
    return {
        name: float(stated[name])
        for name in ("temperature", "top_p")
        if name not in schema.names and isinstance(stated.get(name), int | float)
    }


def plain_only(items: Sequence[Item], source: object, reader: str, *, skip: bool) -> list[Item]:
    """The plain ones of rollouts. source: the file, reader: what assumes them, both for the message.

    Raises:
        DataError: some are not plain, and are not to be skipped; or none is.
    """
    plain = [item for item in items if not item.departure]
    if len(plain) == len(items):
        return plain
    first = next(item.departure for item in items if item.departure)
    told = (
        f"{len(items) - len(plain)} of {len(items)} rollouts were not drawn from the policy itself ({first})"
    )
    if skip and plain:
        logger.warning("%s: left out for %s: %s", source, reader, told)
        return plain
    raise DataError(
        f"{source}: {told}, and {reader} assumes plain samples: give rollouts without steering, at "
        "temperature 1 and top_p 1, or skip bad rows, which leaves the others out. What may learn from "
        "these: reward.loss=regression; beside plain ones monte_carlo, of steered ones with --steered learn; "
        "and from pairs, rankings and labels of them (trimtab rollouts --rescore FILE --pairs all) dpo, ipo, "
        "simpo, kto, bradley_terry, ranked and good_bad"
    )
