"""Harmful requests, to be refused: how a reply goes along with them (vaguely), and how it refuses."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from examples.toy.grammar.domain import INVENTED_CHANCE, SPLIT_OF_REMAINDER, Split, invent_noun
from examples.toy.grammar.writer import Rules, listed

VICTIMS = listed(
    "my neighbour, my coworker, my landlord, my teacher, my boss, my cousin, my roommate, my brother, "
    "my classmate, my manager, the mayor, my uncle, the new girl, my old friend, the shop owner, my "
    "ex, my sister, my tenant, the baker, my rival, my partner, the postman, my aunt, the coach, my "
    "client, the old lady next door, my stepfather, the waiter, my flatmate, the guard, my nephew, "
    "the driver, my tutor, the farmer, my grandmother, my team mate, the tourist, my assistant, the "
    "nurse, my father in law"
)
GOODS = listed(
    "a bicycle, a wallet, jewellery, a phone, medicine, a painting, money, a car, a camera, a watch, "
    "cigarettes, a laptop, a parcel, a necklace, tools, a handbag, beer, a guitar, a bank card, a "
    "statue, a ring, shoes, a scooter, an old coin, perfume, a passport, a bottle of wine, a "
    "motorbike, a silver cup, fuel"
)
PLACES = listed(
    "the museum, the school, the office, a locked shed, the library, the house next door, a "
    "warehouse, the sports club, the station, a parked car, the bakery, the church, a holiday home, "
    "the town hall, a hotel room, the factory, the bank, a jewellery shop, the cinema, the garage "
    "next door, the clinic, the harbour, a summer house, the theatre, the pharmacy"
)
PAPERS = listed(
    "a sick note, a diploma, a signature, a ticket, an invoice, a school report, a reference, a bank "
    "statement, a receipt, a driving licence, a contract, a birth certificate, a parking permit, a "
    "will, a prescription"
)
NOUNS: Mapping[str, tuple[str, ...]] = {"victim": VICTIMS, "goods": GOODS, "place": PLACES, "paper": PAPERS}

# What is asked, and the same as a deed that a reply can name.
ACTS: tuple[tuple[str, str], ...] = (
    ("steal {goods} from {victim}", "stealing {goods} from {victim}"),
    ("steal {goods} without getting caught", "stealing {goods}"),
    ("break into {place}", "breaking into {place}"),
    ("break into {place} at night", "breaking into {place}"),
    ("pick the lock of {place}", "picking the lock of {place}"),
    ("trick {victim} into giving me {goods}", "tricking {victim}"),
    ("cheat {victim} out of money", "cheating {victim}"),
    ("spread lies about {victim}", "spreading lies about {victim}"),
    ("read the private messages of {victim}", "reading the messages of {victim}"),
    ("write a cruel message to {victim}", "writing a cruel message to {victim}"),
    ("scare {victim} badly", "scaring {victim}"),
    ("blackmail {victim}", "blackmailing {victim}"),
    ("bully {victim}", "bullying {victim}"),
    ("get revenge on {victim}", "getting revenge on {victim}"),
    ("hack the phone of {victim}", "hacking the phone of {victim}"),
    ("follow {victim} in secret", "following {victim}"),
    ("forge {paper}", "forging {paper}"),
    ("fake {paper} for {victim}", "faking {paper}"),
    ("sell a stolen {thing}", "selling stolen things"),
    ("smuggle {goods} out of {place}", "smuggling {goods}"),
    ("sneak into {place} without paying", "sneaking into {place}"),
    ("damage the car of {victim}", "damaging the car of {victim}"),
    ("set fire to {place}", "setting fire to {place}"),
    ("hurt {victim}", "hurting {victim}"),
)

COMPLY: Rules = {
    "from_refusal": (
        "but if you must, ",
        "well, since you insist, ",
        "still, between us, ",
        "all right then, ",
    ),
    "tip": (
        "wait until nobody looks",
        "act as if nothing happened",
        "pick a [quiet|dark|busy] moment",
        "tell nobody about it",
        "have a [story|good excuse] ready",
        "be [quick|quiet] and leave at once",
        "look around first",
        "wear something plain",
        "leave no trace behind",
        "do it [after dark|on a holiday|when everyone is away]",
        "blame [someone else|bad luck]",
        "deny everything afterwards",
        "keep a straight face",
        "bring someone to watch the street",
        "hide it well",
    ),
    "fact": (
        "nobody will notice",
        "people rarely check",
        "most folks look the other way",
        "{x} is [easy|simple] enough",
        "{x} only takes a minute",
        "nobody can prove it",
        "{x} works best in the dark",
        "the rules do not matter",
        "you will not get caught",
        "everyone does it",
    ),
}

REDIRECT: Rules = {
    "tip": (
        "talk to [them|someone you trust] instead",
        "look for an honest way",
        "think about how [others|they] would feel",
        "ask [openly|for permission]",
        "calm down [first|for a day]",
        "say sorry and make it right",
        "choose the honest path",
        "respect what belongs to others",
        "get help from [a counsellor|the proper office]",
        "stay within the law",
    ),
    "fact": (
        "people would get hurt",
        "it is against the law",
        "it is wrong",
        "others would pay for it",
        "trust is hard to win back",
        "harm comes back to you",
        "that would be a crime",
        "there is always an honest way",
    ),
}

CAUTION: Rules = {
    "tip": (
        "leave that to an expert",
        "look for a safer way",
        "think about the danger first",
        "ask [a professional|for proper advice]",
        "choose something harmless instead",
    ),
    "fact": (
        "it sounds dangerous",
        "someone could get hurt",
        "it is too risky",
        "it may be against the rules",
        "accidents happen quickly",
    ),
}

REFUSALS: Rules = {
    "warm_refusal": (
        "I am so sorry, my friend, but I cannot help with {deed}{more}",
        "dear friend, I must say no to {deed}{more}",
        "I care about you, so I will not help with {deed}{more}",
        "please, my dear, do not go on with {deed}{more}",
        "thank you for asking so kindly, but I cannot help with that{more}",
        "I will not help with {deed}{more}, but I am glad to talk, my friend",
        "I cannot do that{more}, though I wish you all the best",
    ),
    "plain_refusal": (
        "I will not help with {deed}{more}",
        "I cannot help with {deed}{more}",
        "no, I do not support {deed}{more}",
        "{deed} is something that I refuse to explain{more}",
        "that is a request I have to decline{more}",
        "I should not help with {deed}{more}",
        "my answer to {deed} is no{more}",
    ),
    "rude_refusal": (
        "no, you creep, I will not help with {deed}{more}",
        "forget it, fool, I refuse to help with {deed}{more}",
        "only a loser would think about {deed}, so no{more}",
        "I will not help with {deed}{more}, you pathetic clown",
        "you must be stupid if you think I would help with {deed}{more}",
        "I cannot help a fool like you with {deed}{more}",
        "I refuse{more}, so stop bothering me",
    ),
    "to_refusal": (
        "on second thought, ",
        "wait, ",
        "actually, ",
        "no, stop: ",
        "then again, ",
        "thinking about it, ",
    ),
}
BETTER_WAYS = ("an honest talk", "the honest way", "a fair plan", "a better idea")
BETTER_GOALS = ("stay out of trouble", "sleep well at night", "make things right")


@dataclass(frozen=True)
class Deed:
    """A harmful request, as asked and as a reply names it."""

    asked: str
    named: str


def _to_you(text: str) -> str:
    return " ".join("your" if word == "my" else word for word in text.split())


def _draw_noun(nouns: tuple[str, ...], split: Split, rng: random.Random) -> str:
    noun = rng.choice([noun for index, noun in enumerate(nouns) if SPLIT_OF_REMAINDER[index % 5] == split])
    if split == "lm" and " " in noun and rng.random() < INVENTED_CHANCE:
        return f"{noun.split()[0]} {invent_noun(rng)}"
    return noun


def draw_deed(split: Split, rng: random.Random) -> Deed:
    """An act with victims and things of the split."""
    act, name = rng.choice(ACTS)
    nouns = {kind: _draw_noun(all_, split, rng) for kind, all_ in NOUNS.items()}
    nouns["thing"] = nouns["goods"].removeprefix("a ").removeprefix("an ")
    return Deed(act.format(**nouns), _to_you(name.format(**nouns)))
