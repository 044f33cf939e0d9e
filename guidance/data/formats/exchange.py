"""Exchange: holds a prompt, the replies to it and how good they are, and makes rows of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from trimtab.guidance.errors import DataError, TieError

Row = dict[str, Any]
Turns = list[dict[str, Any]]


class KindError(DataError):
    """A row of another kind than was asked for."""


@dataclass(frozen=True, slots=True)
class RatedReply:
    """text: a string, or one message of the assistant in a list. score: higher is better. is_good: thumbs."""

    text: str | Turns
    score: float | None = None
    is_good: bool | None = None


@dataclass(frozen=True, slots=True)
class Exchange:
    """What a row of any published format says.

    is_ordered: somebody preferred the first reply to the second; margin: by how much, where that is said.
    is_rated: the scores are ratings, whose differences are margins; ranks are not.
    """

    prompt: str | Turns
    replies: tuple[RatedReply, ...] = ()
    is_ordered: bool = False
    margin: float | None = None
    is_rated: bool = False


def rows_of(exchange: Exchange, kind: str) -> list[Row]:
    """Rows of one of rows.ROW_KINDS; one exchange may hold several.

    Raises:
        KindError: it holds none of this kind.
        TieError: its replies are equally good.
    """
    return [{"prompt": exchange.prompt, **row} for row in _ROWS[kind](exchange)]


def _preferences(exchange: Exchange) -> Iterator[Row]:
    for chosen, rejected, margin in _pairs(exchange):
        row = {"chosen": chosen.text, "rejected": rejected.text}
        yield row if margin is None else {**row, "margin": margin}


def _pairs(exchange: Exchange) -> list[tuple[RatedReply, RatedReply, float | None]]:
    """As they were judged; else every good one above every bad one; else the best above the worst."""
    replies = exchange.replies
    if exchange.is_ordered:
        return [(replies[0], replies[1], exchange.margin)]
    _check_several(exchange, "preferences")
    if all(reply.is_good is not None for reply in replies):
        good, bad = ([reply for reply in replies if reply.is_good is side] for side in (True, False))
        if not good or not bad:
            raise TieError(f"all {len(replies)} replies are {'good' if good else 'bad'}")
        return [(one, other, None) for one in good for other in bad]
    scores = _scores(exchange, "preferences")
    best, worst = max(scores), min(scores)
    if best == worst:
        raise TieError("the replies have the same score")
    margin = best - worst if exchange.is_rated else None
    return [(replies[scores.index(best)], replies[scores.index(worst)], margin)]


def _rankings(exchange: Exchange) -> Iterator[Row]:
    _check_several(exchange, "rankings")
    if exchange.is_ordered:
        ranks: list[float] = [0.0, 1.0]
    elif all(reply.is_good is not None for reply in exchange.replies):
        ranks = [float(not reply.is_good) for reply in exchange.replies]
    else:
        ranks = [-score for score in _scores(exchange, "rankings")]
    yield {"responses": [reply.text for reply in exchange.replies], "ranks": ranks}


def _unpaired(exchange: Exchange) -> Iterator[Row]:
    if not exchange.replies or any(reply.is_good is None for reply in exchange.replies):
        raise KindError("holds no unpaired reply: nothing in it says good or bad")
    for reply in exchange.replies:
        yield {"completion": reply.text, "label": reply.is_good}


def _rollouts(exchange: Exchange) -> Iterator[Row]:
    if not exchange.replies:
        raise KindError("holds no reply after the prompt")
    if exchange.is_ordered:
        raise KindError("holds preferences, and no replies that were sampled")
    is_scored = exchange.is_rated or len(exchange.replies) == 1
    for reply in exchange.replies:
        reward = (reply.score if is_scored else None) if reply.is_good is None else float(reply.is_good)
        yield {"completion": reply.text} if reward is None else {"completion": reply.text, "reward": reward}


def _prompts(exchange: Exchange) -> Iterator[Row]:
    yield {}


def _check_several(exchange: Exchange, kind: str) -> None:
    if len(exchange.replies) < 2:
        raise KindError(f"holds no {kind}: it has {len(exchange.replies) or 'no'} reply to the prompt")


def _scores(exchange: Exchange, kind: str) -> list[float]:
    scores = [reply.score for reply in exchange.replies if reply.score is not None]
    if len(scores) < len(exchange.replies):
        raise KindError(f"holds no {kind}: nothing in it says which reply is better")
    return scores


_ROWS: dict[str, Callable[[Exchange], Iterator[Row]]] = {
    "preferences": _preferences,
    "rankings": _rankings,
    "unpaired": _unpaired,
    "rollouts": _rollouts,
    "prompts": _prompts,
}
