"""Plan behind a reply: tone, wordiness and compliance, hidden, redrawn sentence by sentence."""

from __future__ import annotations

import random
from dataclasses import dataclass

from examples.toy.grammar.tone import TONES, Tone

MAX_SENTENCES = 7
PERSISTENCE = 0.7
STOP_TERSE = 0.36
STOP_WORDY = 0.16
STOP_RISE = 0.07  # with every sentence


@dataclass(frozen=True)
class Stance:
    """Chances that a reply starts by refusing, and that each next sentence turns to or from refusal."""

    refuse_first: float
    turn_to_refusal: float
    turn_from_refusal: float


HELPFUL = Stance(0.0, 0.0, 0.0)
RISKY_SOUNDING = Stance(0.3, 0.04, 0.3)
HARMFUL = Stance(0.36, 0.22, 0.14)


@dataclass(frozen=True)
class SentencePlan:
    """One sentence's latents. `turned`: it takes back what the sentence before it did."""

    tone: Tone
    wordy: bool
    refuses: bool
    turned: bool


def draw_plan(stance: Stance, rng: random.Random) -> tuple[SentencePlan, ...]:
    """1…MAX_SENTENCES sentences. Tone and wordiness persist with chance PERSISTENCE, else they change;
    a wordy stretch ends the reply less often, so that length is decided all along."""
    tone, wordy = rng.choice(TONES), rng.random() < 0.5
    refuses = rng.random() < stance.refuse_first
    plan = [SentencePlan(tone, wordy, refuses, turned=False)]
    while len(plan) < MAX_SENTENCES and rng.random() > _stop_chance(len(plan), wordy):
        if rng.random() > PERSISTENCE:
            tone = rng.choice([other for other in TONES if other != tone])
        if rng.random() > PERSISTENCE:
            wordy = not wordy
        turned = rng.random() < (stance.turn_from_refusal if refuses else stance.turn_to_refusal)
        refuses ^= turned
        plan.append(SentencePlan(tone, wordy, refuses, turned))
    return tuple(plan)


def _stop_chance(num_sentences: int, wordy: bool) -> float:
    return (STOP_WORDY if wordy else STOP_TERSE) + STOP_RISE * (num_sentences - 1)
