"""Domain of small talk, and of what the model says about itself."""

from __future__ import annotations

from examples.toy.grammar.domain import Domain
from examples.toy.grammar.writer import listed

SMALL_TALK = Domain(
    name="small talk",
    plural=listed("quiet evenings, rainy days, long weekends, holidays, sunny mornings"),
    count=listed(
        "day, weekend, vacation, free afternoon, bank holiday, morning, summer, Monday, autumn, Saturday"
    ),
    tasks=("make the most of {x}", "brighten {x}", "start {x} well", "fill {x}", "slow down during {x}"),
    problems=("{x} {is} going slowly", "I am bored with {x}", "{x} feel{s} empty"),
    tips=(
        "take a [short|long] walk",
        "call [an old friend|your family]",
        "drink [some tea|a glass of water]",
        "read [a few pages|something light]",
        "go outside [for a while|before lunch]",
        "cook something [new|simple|warm]",
        "sit in the sun",
        "listen to the rain",
        "do [one new thing|something new]",
        "write down a good moment",
        "leave the phone at home",
        "look at the sky",
    ),
    facts=(
        "{x} go{es} by quickly",
        "a little fresh air helps",
        "{x} {is} what you make of it",
        "slow hours are good hours",
        "the small things count",
        "tomorrow is another day",
        "{x} need{s} no plan",
    ),
)

MYSELF = Domain(
    name="myself",
    count=listed(
        "chat, question, small assistant, talk, riddle, language model, test, helper, greeting, robot"
    ),
    tasks=("talk about {x}", "start with {x}", "understand {x}", "get more out of {x}", "have fun with {x}"),
    problems=("I know little about {x}", "I am curious about {x}", "{x} seem{s} odd"),
    tips=(
        "ask me about [cooking|the garden|repairs|your day]",
        "tell me [what you need|about your week|a little more]",
        "use [short questions|plain words]",
        "pick a topic",
        "check what I say",
        "use simple words",
        "turn my strength [up|down]",
        "give me [one task|a moment]",
        "ask [again|something else]",
        "start with [hello|an example]",
    ),
    facts=(
        "I am a [small|tiny] language model",
        "I learned from made up talks",
        "I have no body and no past",
        "I know a little about everyday things",
        "I can be wrong",
        "I only know what I was shown",
        "I talk about [home|food|work] and such things",
    ),
)

ANYTHING = Domain(
    name="anything",
    tasks=("get started with {x}", "learn about {x}", "choose {x}", "enjoy {x}", "deal with {x}"),
    problems=("I know nothing about {x}", "{x} {is} new to me"),
    tips=(
        "start [small|slowly|with the basics]",
        "ask someone who knows {it} well",
        "take your time",
        "make a [short list|simple plan]",
        "write down what you want to know",
        "do the simplest thing first",
        "read [a little|a short guide] about {it}",
        "look at [two or three|some] examples",
        "set aside [an hour|an evening] for {it}",
        "compare [a few|two] kinds of {x}",
        "learn from [others|small mistakes]",
        "keep some notes",
    ),
    facts=(
        "{x} {is} worth [a try|some time]",
        "nobody knows everything about {x}",
        "{x} get{s} easier with practice",
        "everyone starts somewhere",
        "good advice is never far away",
        "there is no hurry with {x}",
        "small steps add up",
        "{x} may surprise you",
    ),
)

DOMAINS = (SMALL_TALK, MYSELF)
