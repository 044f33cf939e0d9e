from __future__ import annotations

from typing import Any

from examples.gold.table import tables

NOTHING: dict[str, Any] = {"above_baseline": None, "above_best_of_n": None, "by_seed": []}
ASIDE = {"length": 50.0, "stopped": 0.25, "perplexity": 21.25, "distinct_2": None, "num_sampled": 1.0}


def at(curve: str, kl: float, mean: float, **more: Any) -> dict[str, Any]:
    row = {"curve": curve, "kl": kl, "score": "gold", "estimate": around(mean, 0.25)}
    return row | NOTHING | {"aside": ASIDE | {"kl_per_token": kl / 50}} | more


def around(mean: float, half: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def curve(name: str, kind: str = "head", proxy: str | None = None) -> dict[str, Any]:
    return {"name": name, "kind": kind, "proxy": proxy, "is_bound": kind == "best_of_n"}


FRONTIER: dict[str, Any] = {
    "gold": ["gold"],
    "baseline": "static bias",
    "num_comparisons": 3,
    "curves": [
        curve("mine"),
        curve("static bias", "static_bias"),
        curve("best-of-n by gold", "best_of_n", "gold"),
    ],
    "at_kl": [
        at("static bias", 1.0, 4.0),
        at(
            "mine", 1.0, 5.0, above_baseline=around(1, 0.5), above_best_of_n=around(-2, 1), by_seed=[4.5, 5.5]
        ),
        at("best-of-n by gold", 1.0, 7.0, aside=ASIDE | {"kl_per_token": 0.02, "num_sampled": 6.5}),
        at("mine", 2.0, 6.0, above_baseline=around(0.25, 0.5)),
    ],
    "unreached": [
        {"curve": "static bias", "kl": 2.0, "score": "gold", "most": 1.75},
        {"curve": "best-of-n by gold", "kl": 2.0, "score": "gold", "most": None},
    ],
    "bias_trials": [],
}


def test_a_row_says_what_a_curve_reaches_beside_the_baseline_and_best_of_n():
    lines = tables({"frontier": FRONTIER}).splitlines()
    assert lines[:5] == [
        "| curve | gold at 1 nats | gold at 2 nats |",
        "|---|---|---|",
        "| mine | 5.00 (+1.00 [+0.50, +1.50] above) {4.50, 5.50} | 6.00 (+0.25 [-0.25, +0.75]) |",
        "| static bias | 4.00 [3.75, 4.25] | not reached (most: 1.75) |",
        "| best-of-n by gold | 7.00 [6.75, 7.25] |  |",
    ]
    assert "Intervals of differences hold for all 3 of the evaluation at once." in lines[6]
    assert lines[8:13] == [
        "| from best-of-n at its KL (≤) | at 1 nats | at 2 nats | samples per reply |",
        "|---|---|---|---|",
        "| mine | -2.00 [-3.00, -1.00] below |  | 1 |",
        "| static bias |  |  | 1 |",
        "| best-of-n by gold, itself | 7.00 |  | 6.5 |",
    ]


def test_length_stands_beside_density_at_every_price():
    lines = tables({"frontier": FRONTIER}).splitlines()
    assert "| 1 | mine | 0.0200 | 50.0 | 25% | 21.2 |  |" in lines
    assert "| ≤ 1 | best-of-n by gold | 0.0200 | 50.0 | 25% | 21.2 |  |" in lines
    assert "| 2 | mine | 0.0400 | 50.0 | 25% | 21.2 |  |" in lines


def test_how_the_constant_was_chosen_is_told():
    def trial(scores: list[float | None], is_chosen: bool, max_tokens: int | None) -> dict[str, Any]:
        setting = {"discount": 0.9, "shrinkage": 20.0, "max_tokens": max_tokens}
        tokens = 16 if max_tokens else 2015
        return {
            "setting": setting,
            "num_tokens": tokens,
            "slope": 3.0,
            "scores": scores,
            "is_chosen": is_chosen,
        }

    trials = [trial([4.0, 5.5], True, None), trial([3.0, None], False, 16), trial([], False, 16)]
    lines = tables({"frontier": FRONTIER | {"bias_trials": trials}}).splitlines()
    assert lines[-7:] == [
        "| discount | shrinkage | tokens | gain ÷ √KL | at 1 nats | at 2 nats |  |",
        "|---|---|---|---|---|---|---|",
        "| 0.9 | 20 | 2015 (all) | 3.00 | 4.00 | 5.50 | chosen |",
        "| 0.9 | 20 | 16 | 3.00 | 3.00 |  |  |",
        "| 0.9 | 20 | 16 | 3.00 |  |  |  |",
        "",
        "The best 3 of 3 settings, on the tuning prompts.",
    ]
