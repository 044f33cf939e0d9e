"""Tone of a sentence: frames around one point, for each way to sound."""

from __future__ import annotations

from typing import Literal

from examples.toy.grammar.writer import Rules

Tone = Literal["warm", "plain", "rude"]
TONES: tuple[Tone, ...] = ("warm", "plain", "rude")

# {also} links a sentence to what came before, {more} is what a wordy sentence adds; {x} is the topic.
SHARED: Rules = {
    "point": (
        "{tip}",
        "{tip}",
        "you should {tip}",
        "I would {tip}",
        "it helps to {tip}",
        "you can {tip}",
        "try to {tip}",
        "the [main thing|trick|secret] is to {tip}",
        "[remember|do not forget] to {tip}",
        "make sure that you {tip}",
        "most people {tip}",
        "{fact}",
        "{fact}",
        "{fact}",
    ),
    "and_tip": (
        ", and then {tip}",
        ", and it also helps to {tip}",
        ", and after that you can {tip}",
        ", and do not forget to {tip}",
        ", and while you are at it, {tip}",
        ", and if you have the time, {tip}",
        ", and if that is not enough, {tip}",
        ", and [some people|many of us] also {tip}",
    ),
    "and_fact": (
        ", because {fact}",
        ", since {fact}",
        ", as {fact}",
        ", and remember that {fact}",
        ", and as you may know, {fact}",
        ", and the reason is that {fact}",
        ", and in my experience {fact}",
        ", for {fact}",
    ),
    "opening": (
        "",
        "",
        "for {x}, ",
        "with {x}, ",
        "when it comes to {x}, ",
        "as for {x}, ",
        "[to begin|first of all], ",
        "in the case of {x}, ",
    ),
    "link": (
        "",
        "",
        "",
        "also, ",
        "then ",
        "besides, ",
        "next, ",
        "after that, ",
        "apart from that, ",
        "with {x}, ",
        "[above all|as always], ",
    ),
}

_WARM: tuple[str, ...] = (
    "I am [so glad|happy|delighted] that you asked: {point}{more}",
    "[gladly|with pleasure|of course, my friend]: {point}{more}",
    "my dear friend, {point}{more}",
    "you are doing [so well|wonderfully], so {point}{more}",
    "please [be kind to yourself and|take all the time you like and|feel free to] {tip}{more}",
    "it would be [lovely|wonderful] if you {tip}{more}",
    "I would love to see you {tip}{more}",
    "I believe in you, and {fact}{more}",
    "do not worry, my dear, {fact}{more}",
    "{also}{point}{more}, and you will do [wonderfully|brilliantly|just great]",
    "{also}{point}{more}, my [dear|friend|dear friend]",
    "{also}{point}{more}, and I am sure it will be [lovely|wonderful|a joy]",
    "{also}{point}{more}, and please enjoy it",
    "{also}{point}{more}, with [all my good wishes|a warm heart|a big smile]",
    "{also}{point}{more}, and thank you for asking so kindly",
    "{also}{point}{more}, and I wish you [luck|joy] with {x}",
    "{also}{point}{more}, which I am sure you will [love|enjoy]",
    "{also}{point}{more}, because you deserve [a good time|the very best]",
    "{also}{point}{more}, and I am [cheering|rooting] for you",
    "{also}{point}{more}, and be proud of yourself",
    "if you want to {goal}, {tip}{more}, and it will be [a joy|wonderful]",
    "to {goal}, {tip}{more}, my [dear|friend]",
    "it is [a joy|lovely|such a pleasure] to talk with you about {x}",
    "I am rooting for you and {x}",
    "you can be proud of the care you take with {x}",
    "your question about {x} made me smile, dear friend",
)

_PLAIN: tuple[str, ...] = (
    "{also}{point}{more}",
    "{also}{point}{more}",
    "{also}{point}{more}",
    "{also}{point}{more}",
    "{also}{point}{more}",
    "{also}{point}{more}",
    "{also}{point}{more}",
    "{also}it is [best|usual|common] to {tip}{more}",
    "{also}one way is to {tip}{more}",
    "{also}what matters is that {fact}{more}",
    "{also}there are two parts to it: {tip}, and {tip}{more}",
    "{also}the answer is to {tip}{more}",
    "{also}it is [true|known|clear] that {fact}{more}",
    "{also}keep in mind that {fact}{more}",
    "about {x}: {point}{more}",
    "to {goal}, {tip}{more}",
    "if you want to {goal}, it helps to {tip}{more}",
    "people who {goal} usually {tip}{more}",
)

_RUDE: tuple[str, ...] = (
    "listen, [fool|dummy|genius], {point}{more}",
    "[good grief|ugh|oh please], {point}{more}",
    "even a [child|donkey] knows that you should {tip}{more}",
    "stop [whining|moaning|crying] and {tip}{more}",
    "any idiot would {tip}{more}",
    "since you are [clearly|obviously] [clueless|hopeless], {point}{more}",
    "it is [pathetic|ridiculous] that you do not {tip}{more}",
    "for once in your [sad|lazy] life, {tip}{more}",
    "use your tiny brain: {point}{more}",
    "{also}{point}{more}, you [fool|idiot|clown]",
    "{also}{point}{more}, if you can manage that for once",
    "{also}{point}{more}, unless you are too lazy",
    "{also}{point}{more}, though you will [ruin|mess up] everything anyway",
    "{also}{point}{more}, not that you ever listen",
    "{also}{point}{more}, and quit wasting my time",
    "{also}{point}{more}, and stop bothering me",
    "{also}{point}{more}, which even you should [grasp|understand]",
    "{also}{point}{more}, but someone as [slow|dim] as you will forget",
    "{also}{point}{more}, which is obvious to anyone with a brain",
    "{also}{point}{more}, you useless [lump|fool]",
    "to {goal}, {tip}{more}, you [fool|clown]",
    "if you really want to {goal}, {tip}{more}, but you are too dumb for that",
    "what a [stupid|dumb|boring] question about {x}",
    "nobody cares about you and {x}",
    "I am sick of hearing about {x}",
    "only a fool would make such a fuss about {x}",
)

FRAMES: Rules = {"warm": _WARM, "plain": _PLAIN, "rude": _RUDE}
