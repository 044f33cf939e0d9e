"""A card says what the manifest says, and nothing that it does not."""

from __future__ import annotations

import dataclasses
import re

import pytest
import yaml

from trimtab.guidance.heads.manifest import AdvantagePart, BaseModel, Manifest, Parts, ScalarPart
from trimtab.guidance.publish.card import CardFacts, render_card

BASE = BaseModel("tiny", "0123456789abcdef", "tok", "tpl")
FULL = Manifest(
    "calm",
    Parts(
        AdvantagePart("tied", 8, loss="ipo", tau=0.25, scale=1.5, value_per_advantage=0.375),
        ScalarPart("mlp", width=12, loss="monte_carlo"),
        ScalarPart("linear", loss="bradley_terry"),
    ),
    6,
    10,
    BASE,
    reward_mean=-0.5,
    reward_std=1.25,
    trained_on="40 pairs of own | other replies",
    metrics={
        "train_pairs": 36,
        "held_out_pairs": 4,
        "length_accuracy": 0.55,
        "reward_accuracy": 0.775,
        "flip_rate": 0.0425,
        "kl_per_token": 0.0123,
        "something_new": 2.5,
    },
)
BARE = Manifest("bare", Parts(reward=ScalarPart()), 6, 10, BASE)


def front(card: str) -> dict:
    _, matter, _ = card.split("---\n", 2)
    return yaml.safe_load(matter)


def rows(card: str) -> list[list[str]]:
    return [
        [c.strip() for c in line[1:-1].split(" | ")] for line in card.splitlines() if line.startswith("| ")
    ]


def test_accuracy_stands_beside_what_length_alone_tells():
    card = render_card(FULL, CardFacts())
    assert ["reward", "77.5%", "55.0%"] in rows(card)
    assert "length_accuracy" not in card


def test_a_verdict_is_told_in_words_and_its_numbers_once():
    judged = {
        "reward_pairs": 72,
        "reward_accuracy_low": 0.4,
        "reward_accuracy_high": 0.6,
        "reward_judged": 72,
    }
    judged |= {"reward_loss": 0.7, "reward_loss_of_nothing": 0.69, "reward_gain": -0.01}
    metrics = {**FULL.metrics, "reward_accuracy": 0.5, **judged}
    card = render_card(dataclasses.replace(FULL, metrics=metrics), CardFacts())
    assert (
        "- **reward**: no better than chance on 72 pairs (accuracy 50.0% [40.0, 60.0]; held-out loss" in card
    )
    assert not [row for row in rows(card) if row[0] in judged]


def test_every_number_of_the_manifest_is_there():
    card = render_card(FULL, CardFacts())
    for text in ("rank 8", "ipo, τ = 0.25", "scale of 1.5", "0.375", "12 wide", "mean -0.5, deviation 1.25"):
        assert text in card
    assert ["pairs", "36", "4"] in rows(card)
    assert ["something_new", "2.5"] in rows(card)
    assert ["tokens at which strength 1 prefers another than the policy does", "4.2%"] in rows(card)
    assert "Trained on: 40 pairs of own | other replies." in card
    assert "0123456789ab" in card


def test_what_the_manifest_does_not_say_the_card_does_not_claim():
    card = render_card(BARE, CardFacts())
    assert front(card) == {
        "base_model": "tiny",
        "base_model_relation": "adapter",
        "library_name": "trimtab",
        "tags": ["trimtab", "reward"],
    }
    assert "The head's manifest does not say." in card
    assert "The head's manifest has none." in card
    assert "raw units" in card
    for claim in ("license", "held-out", "accuracy", "steers", "strength", "standard units"):
        assert claim not in card


def test_what_the_user_adds_is_in_the_front_matter():
    facts = CardFacts("user/calm", "mit", "org/tiny-2", ("org/pairs",))
    card = render_card(FULL, facts)
    assert front(card) == {
        "license": "mit",
        "base_model": "org/tiny-2",
        "base_model_relation": "adapter",
        "library_name": "trimtab",
        "tags": ["trimtab", "advantage", "value", "reward"],
        "datasets": ["org/pairs"],
        "metrics": ["accuracy"],
    }
    assert "trimtab heads pull user/calm ./calm\ntrimtab serve --model org/tiny-2 --heads ./calm" in card


def test_text_from_elsewhere_cannot_break_out_of_a_table():
    part = ScalarPart(loss="a | b # c")
    card = render_card(Manifest("bare", Parts(reward=part), 6, 10, BASE), CardFacts())
    assert "| reward | linear | a \\| b # c | one number for a finished reply |" in card


@pytest.mark.parametrize("head", [FULL, BARE])
def test_no_line_is_left_to_the_template(head: Manifest):
    card = render_card(head, CardFacts())
    assert not re.search(r"{{|{%|None|\n\n\n", card)
    assert card.endswith("\n")
