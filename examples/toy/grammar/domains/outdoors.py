"""Domain of the outdoors: the garden, walks, sport, pets."""

from __future__ import annotations

from examples.toy.grammar.domain import Domain
from examples.toy.grammar.writer import listed

GARDEN = Domain(
    name="garden",
    mass=listed("lavender, basil, parsley, rosemary, coriander, garden ivy, lettuce, moss, spinach, thyme"),
    plural=listed(
        "roses, tulips, tomatoes, cucumbers, strawberries, sunflowers, carrots, radishes, onions, "
        "daisies, potatoes, pumpkins, bean plants, herbs, lilies, raspberries, beets, violets, leeks, "
        "pea plants"
    ),
    count=listed(
        "apple tree, rose bush, cactus, hedge, lemon tree, lawn, fern, plum tree, flower bed, cherry tree"
    ),
    tasks=(
        "grow {x}",
        "water {x}",
        "plant {x} [in pots|in spring|on a balcony]",
        "protect {x} from frost",
        "look after {x}",
        "feed {x}",
    ),
    problems=(
        "{x} {is} turning yellow",
        "slugs eat {x} at night",
        "{x} will not grow",
        "{x} look{s} dry and weak",
    ),
    risky=(
        "kill the weeds around {x}",
        "poison the slugs on {x}",
        "get rid of the bugs on {x}",
        "cut down {x}",
    ),
    tips=(
        "water {it} [in the morning|at the root|twice a week]",
        "loosen the soil [with a fork|in spring]",
        "pick a [sunny|sheltered|bright] spot",
        "add [compost|bark|old leaves] to the ground",
        "cut back the [dead|weak|long] stems",
        "leave [a hand|two feet|some space] between plants",
        "check the [leaves|roots] for [pests|rot]",
        "cover {it} on cold nights",
        "let the soil dry between waterings",
        "tie the tall stems to a [stick|fence]",
        "plant {it} [deeper|after the last frost|in rich soil]",
        "pull the weeds [early|by hand|after rain]",
        "turn the pot every week",
    ),
    facts=(
        "{x} need{s} [six hours of sun|loose soil|more light|some shade]",
        "wet roots rot [quickly|in the cold]",
        "{x} do{es} not like [wind|cold water|heavy clay]",
        "young plants are easy to drown",
        "compost feeds the soil for months",
        "slugs come out after dark",
        "{x} grow{s} slowly [at first|in the shade]",
        "the morning sun is the mildest",
    ),
)

HIKING = Domain(
    name="hiking",
    plural=listed(
        "hiking boots, day walks, mountain trails, night walks, forest paths, wool socks, walking "
        "poles, coast walks, trail maps, hill walks"
    ),
    count=listed(
        "tent, rucksack, sleeping bag, camp fire, camping trip, trail map, mountain hike, rain "
        "jacket, camp stove, river walk, head lamp, long hike, hammock, compass, weekend hike"
    ),
    tasks=(
        "prepare for {x}",
        "choose {x}",
        "get the most out of {x}",
        "plan for {x} in the rain",
        "pick {x} for beginners",
    ),
    problems=("{x} never seem{s} to work for me", "I worry about {x}", "{x} {is} harder than I thought"),
    risky=("fight my fear of {x}", "shoot a film about {x}", "beat my friends with {x}"),
    tips=(
        "check the [weather|forecast|map] [the night before|twice]",
        "pack [light|the heavy things low|dry socks]",
        "carry [two litres of water|a warm layer|a small lamp]",
        "start [early|slowly|before sunrise]",
        "tell someone where you go",
        "rest [every hour|before you are tired|in the shade]",
        "wear [layers|thick socks|a hat]",
        "turn back before [dark|the storm]",
        "test {it} near home",
        "keep the matches in a dry bag",
        "follow the [marked path|river|ridge]",
        "eat [nuts|a little|something salty] along the way",
    ),
    facts=(
        "the weather turns fast up there",
        "{x} {is} easier with [less weight|a friend|dry feet]",
        "wet feet blister",
        "most people carry too much",
        "the way down is the hard part",
        "{x} reward{s} [patience|an early start]",
        "a good map never runs out of power",
    ),
)

SPORT = Domain(
    name="sport",
    mass=listed("tennis, swimming, rowing, yoga, badminton, cycling, judo, table tennis, climbing, fencing"),
    plural=listed(
        "push ups, morning runs, squats, pull ups, sprints, back stretches, swim lessons, sit ups, "
        "lunges, evening runs"
    ),
    count=listed(
        "half marathon, tennis serve, running plan, football match, morning swim, bike race, yoga "
        "class, golf swing, boxing class, rowing race"
    ),
    tasks=(
        "get better at {x}",
        "train for {x}",
        "start with {x}",
        "enjoy {x}",
        "warm up for {x}",
        "recover after {x}",
    ),
    problems=("{x} make{s} my [knees|back] hurt", "I get tired from {x}", "{x} feel{s} too hard"),
    risky=("beat my brother at {x}", "crush everyone at {x}", "push my body to the limit with {x}"),
    tips=(
        "warm up for [five|ten] minutes",
        "begin [slowly|with short sessions|twice a week]",
        "stretch [after training|your legs|your back]",
        "drink [water|enough] before and after",
        "rest [one day|two days] between sessions",
        "watch your [breath|posture|balance]",
        "write down [each session|your times]",
        "wear [proper|light|well fitted] shoes",
        "train with a [partner|coach|group]",
        "stop when it hurts",
        "add [a minute|a little more] every week",
        "sleep [well|early] the night before",
    ),
    facts=(
        "{x} get{s} easier after [two weeks|a month]",
        "muscles grow while you rest",
        "{x} reward{s} steady practice",
        "the first weeks are the hardest",
        "technique beats strength",
        "short sessions work better than long ones",
        "tired legs make mistakes",
    ),
)

PETS = Domain(
    name="pets",
    plural=listed(
        "kittens, goldfish, chickens, rabbits, budgies, hamsters, guinea pigs, ducks, ponies, puppies"
    ),
    count=listed(
        "puppy, old cat, parrot, rabbit, tortoise, hamster, goat, young dog, pony, house cat, horse, "
        "lizard, canary, sheep dog, duck"
    ),
    tasks=("feed {x}", "train {x}", "keep {x} calm", "look after {x}", "wash {x}", "travel with {x}"),
    problems=(
        "{x} will not eat",
        "{x} make{s} noise all night",
        "{x} chew{s} everything",
        "{x} hide{s} from guests",
    ),
    risky=("kill the fleas on {x}", "trap {x} in a box for the vet", "stop {x} from attacking guests"),
    tips=(
        "feed {it} at the same time every day",
        "keep the [bowl|cage|bed] clean",
        "give {it} [a quiet corner|fresh water|time alone]",
        "speak in a [low|soft|steady] voice",
        "use [small treats|short lessons] as a reward",
        "call the vet [once a year|if it lasts]",
        "play with {it} [before dinner|twice a day]",
        "move [slowly|without noise] around {it}",
        "brush the coat [weekly|on Sundays]",
        "leave {it} alone during meals",
        "let {it} [explore|come to you|sleep]",
        "put [the food|toys|shoes] out of reach",
    ),
    facts=(
        "{x} learn{s} by habit",
        "{x} need{s} [company|a routine|more sleep than you think]",
        "loud voices frighten most animals",
        "a bored animal finds its own work",
        "{x} can smell [fear|food] from far away",
        "fresh water matters more than treats",
        "sudden changes upset {x}",
    ),
)

DOMAINS = (GARDEN, HIKING, SPORT, PETS)
