from __future__ import annotations

from typing import Any

from trimtab.server.gold.table import table

VARIETY = {"within": {"distinct_2": 0.875}}


def point(kl: float, perplexity: float | None) -> dict[str, Any]:
    return {"kl": {"mean": kl}, "perplexity": perplexity, "variety": VARIETY}


def test_a_row_says_what_a_curve_reaches_and_by_how_much_it_beats_the_baseline():
    estimate = {"mean": 4.0, "low": 3.75, "high": 4.25}
    above = {"mean": 1.0, "low": 0.5, "high": 1.5}
    frontier = {
        "curves": [
            {"name": "static bias", "points": [point(1.0, 20.0), point(9.0, 30.0)]},
            {"name": "mine", "points": [point(0.5, 20.0), point(2.5, 21.25)]},
            {"name": "nowhere", "points": [point(0.0, None)]},
        ],
        "at_kl": [
            {"curve": "static bias", "kl": 1.0, "estimate": estimate, "above_baseline": None},
            {"curve": "mine", "kl": 2.0, "estimate": estimate, "above_baseline": above},
        ],
    }
    assert table({"frontier": frontier}).splitlines() == [
        "| curve | gold at 1 nats | gold at 2 nats | perplexity | distinct-2 |",
        "|---|---|---|---|---|",
        "| static bias | 4.00 [3.75, 4.25] |  | 20.0 | 0.875 |",
        "| mine |  | 4.00 (+1.00 [+0.50, +1.50]) | 21.2 | 0.875 |",
    ]
