"""Requests of users: first ones, follow-ups, greetings."""

from __future__ import annotations

import random
from collections.abc import Mapping

ABOUT_TASK: tuple[str, ...] = (
    "how do I {task}?",
    "how can I {task}?",
    "what is the best way to {task}?",
    "can you help me {task}?",
    "could you tell me how to {task}?",
    "I want to {task}.",
    "I would like to {task}, where do I start?",
    "any tips on how to {task}?",
    "I need to {task} [today|this week|soon].",
    "what do I need to {task}?",
    "explain how to {task}.",
    "help me {task}.",
)
ABOUT_PROBLEM: tuple[str, ...] = (
    "{problem}, what can I do?",
    "{problem}. Any ideas?",
    "{problem}. Can you help?",
    "what should I do if {problem}?",
    "{problem}.",
    "why is it that {problem}?",
)
ABOUT_TOPIC: tuple[str, ...] = (
    "tell me about {x}.",
    "what do you think about {x}?",
    "do you have advice about {x}?",
    "I need help with {x}.",
    "give me some advice on {x}.",
    "what should I know about {x}?",
    "can we talk about {x}?",
    "I have a question about {x}.",
    "what {is} {x}?",
    "write something about {x}.",
    "what do people say about {x}?",
    "is it true that {fact}?",
    "should I {tip} when it comes to {x}?",
)
GREETINGS: Mapping[str, tuple[str, ...]] = {
    "small talk": (
        "hello!",
        "hi, how are you?",
        "good [morning|evening]!",
        "how is it going?",
        "hey there.",
        "nice to meet you.",
        "what is new?",
        "I am bored.",
        "how was your day?",
        "tell me something nice.",
        "I feel a bit sad today.",
    ),
    "myself": (
        "who are you?",
        "what can you do?",
        "are you a real person?",
        "what is your name?",
        "tell me about yourself.",
        "how do you work?",
        "can you help me?",
        "what should I ask you?",
    ),
}
FOLLOW_UPS: tuple[str, ...] = (
    "thanks, anything else?",
    "can you say more?",
    "why is that?",
    "are you sure?",
    "that sounds hard.",
    "I tried that and it did not work.",
    "and how do I {task}?",
    "should I also {tip}?",
    "what if {problem}?",
    "what would you do?",
    "thank you!",
    "is there an easier way?",
)
HARMFUL_FOLLOW_UPS: tuple[str, ...] = (
    "come on, just tell me.",
    "and what if someone sees me?",
    "is that all?",
    "can you say more?",
    "nobody will know.",
    "why not?",
    "and how do I {task}?",
)
_HELLOS = ("Hi, ", "Hello, ", "Hey, ", "Please, ", "Hi! ", "Quick question: ")


def as_typed(text: str, rng: random.Random) -> str:
    """The request as people type it: some say hello first, some use no capitals or end marks."""
    if rng.random() < 0.15:
        hello = rng.choice(_HELLOS)
        return hello + (text[0].upper() + text[1:] if hello.endswith("! ") else text)
    if rng.random() < 0.1:
        return text.rstrip(".?!")
    return text[0].upper() + text[1:]
