"""Domain of people: friends and family, parties, moving house, feelings."""

from __future__ import annotations

from examples.toy.grammar.domain import Domain
from examples.toy.grammar.writer import listed

FAMILY = Domain(
    name="family",
    plural=listed(
        "twins, grandparents, teenage sons, neighbours, in laws, old friends, small children, "
        "cousins, step children, colleagues"
    ),
    count=listed(
        "sister, best friend, godfather, grandfather, pen friend, mother, teenage son, aunt, new "
        "colleague, daughter, cousin, old friend, son in law, niece, great aunt"
    ),
    tasks=(
        "spend more time with {x}",
        "talk to {x}",
        "find a present for {x}",
        "cheer up {x}",
        "make peace with {x}",
        "surprise {x}",
    ),
    problems=("{x} never call{s} me", "I had an argument with {x}", "{x} seem{s} sad", "I miss {x}"),
    tips=(
        "listen [first|without advice|for a while]",
        "call [on Sunday|once a week]",
        "ask [an open question|about the week]",
        "say [sorry|what you feel|thank you]",
        "go for a walk together",
        "cook [a meal|something simple] together",
        "write a short [note|letter]",
        "plan [one evening|a small trip]",
        "notice the small things",
        "leave some time",
        "put the phone down",
        "share an old story",
    ),
    facts=(
        "people remember how you listened",
        "{x} may [need time|be tired|feel the same]",
        "small gestures last",
        "silence is not always anger",
        "{x} will notice the effort",
        "most arguments start small",
        "time together matters more than gifts",
    ),
)

PARTIES = Domain(
    name="parties",
    plural=listed(
        "birthday games, party guests, dinner invitations, table settings, party decorations, wedding "
        "plans, party songs, winter parties, balloons, garden parties"
    ),
    count=listed(
        "birthday party, wedding, dinner party, farewell party, picnic, house warming, costume party, "
        "family dinner, anniversary, barbecue"
    ),
    tasks=(
        "plan {x}",
        "keep {x} cheap",
        "organise {x} for twenty people",
        "decorate for {x}",
        "make {x} special",
    ),
    problems=("nobody has time for {x}", "{x} might get rained off", "I have two days for {x}"),
    risky=("blow up the balloons for {x}", "kill the boring mood at {x}", "crash into {x} with a surprise"),
    tips=(
        "make a [short|guest] list",
        "send the invitations early",
        "borrow [chairs|plates|a speaker]",
        "prepare the food the day before",
        "put on [some music|soft lights]",
        "ask everyone to bring a dish",
        "keep [one game|a quiet corner] ready",
        "set a clear start and end",
        "buy [less food|simple drinks]",
        "give someone a task",
        "have a plan for rain",
        "hang [lights|paper chains]",
    ),
    facts=(
        "guests remember the mood",
        "{x} need{s} less than you think",
        "simple food is the best",
        "{x} get{s} going after the first hour",
        "people love to help",
        "nobody looks at the napkins",
        "music fills the gaps",
    ),
)

MOVING = Domain(
    name="moving house",
    plural=listed("moving boxes, flat viewings, floor plans, rental contracts, house plants"),
    count=listed(
        "new flat, bedroom wall, living room, attic, small kitchen, balcony, hallway, moving van, "
        "home office, basement"
    ),
    tasks=("arrange {x}", "brighten {x}", "find {x}", "organise {x}", "prepare {x} for winter"),
    problems=("{x} feel{s} crowded", "{x} {is} a mess", "{x} look{s} dull"),
    tips=(
        "measure [the doors|everything] first",
        "sort [before you pack|one corner a day]",
        "label [both sides|each box]",
        "give away what you do not need",
        "paint one wall [white|green|a warm colour]",
        "use [mirrors|shelves up high]",
        "ask two friends",
        "keep the [window|floor] clear",
        "put the [bed|desk] by the light",
        "take photos of the [meter|damage]",
        "hang a [lamp|picture] low",
        "visit it [in daylight|twice]",
    ),
    facts=(
        "{x} {is} easier with less in it",
        "light makes rooms larger",
        "boxes fill faster than you think",
        "{x} set{s} the mood of a home",
        "empty corners rest the eye",
        "everything takes twice as long",
        "plants clean the air",
    ),
)

FEELINGS = Domain(
    name="feelings",
    mass=listed(
        "boredom, homesickness, loneliness, stage fright, panic, worry, jealousy, envy, shyness, doubt"
    ),
    plural=listed("mood swings, bad habits, exam nerves, angry thoughts, regrets"),
    count=listed(
        "bad day, difficult decision, big change, broken promise, lazy weekend, bad mood, new habit, "
        "fear of flying, big mistake, long winter"
    ),
    tasks=("deal with {x}", "get over {x}", "talk about {x}", "accept {x}", "learn from {x}"),
    problems=("{x} keep{s} me awake", "{x} get{s} me down", "I do not know what to do about {x}"),
    risky=("fight {x}", "kill {x} for good", "beat {x}"),
    tips=(
        "talk to [someone close|a friend]",
        "write [it down|a page about it]",
        "take a [long|slow] walk",
        "breathe [in and out|slowly]",
        "name what you feel",
        "give it [a night|some time]",
        "do one small thing",
        "help someone else",
        "turn off the news",
        "move your body",
        "make a list of [reasons|good things]",
        "rest [first|without guilt]",
    ),
    facts=(
        "{x} pass{es} in time",
        "everyone knows {x}",
        "feelings come in waves",
        "{x} shrink{s} when you say it aloud",
        "a short walk clears the head",
        "nobody decides well at night",
        "{x} can teach you something",
    ),
)

DOMAINS = (FAMILY, PARTIES, MOVING, FEELINGS)
