"""Domain of everyday: work, study, money, sleep, health, travel, languages."""

from __future__ import annotations

from examples.toy.grammar.domain import Domain
from examples.toy.grammar.writer import listed

WORK = Domain(
    name="work",
    plural=listed(
        "team meetings, weekly reports, client calls, deadlines, job interviews, night shifts, long "
        "emails, budget plans, staff talks, project notes"
    ),
    count=listed(
        "job interview, annual report, team meeting, cover letter, new job, business plan, sales "
        "pitch, salary talk, project plan, first day at work, status report, client call, office "
        "move, resume, work trip"
    ),
    tasks=("prepare {x}", "plan {x}", "handle {x}", "improve {x}", "stay calm about {x}"),
    problems=(
        "I am nervous about {x}",
        "{x} take{s} too long",
        "my boss is unhappy with {x}",
        "I keep putting off {x}",
    ),
    risky=("kill it at {x}", "crush {x}", "attack {x} without fear"),
    tips=(
        "write down [three points|the goal|what you need]",
        "start with the [hardest|smallest] part",
        "ask for [feedback|a clear deadline|help early]",
        "leave [an hour|some time] between tasks",
        "keep it [short|simple|to one page]",
        "practise [aloud|with a colleague]",
        "turn off the phone",
        "send [a short summary|the notes] afterwards",
        "agree on [who does what|the next step]",
        "arrive [ten minutes early|rested]",
        "say no to [one thing|extra work]",
        "take a break [before lunch|every hour]",
    ),
    facts=(
        "{x} go{es} better with a plan",
        "most people remember only [one point|the start and the end]",
        "short notes get read",
        "{x} rarely go{es} as planned",
        "clear questions save time",
        "tired people decide badly",
        "{x} {is} mostly preparation",
    ),
)

STUDY = Domain(
    name="study",
    mass=listed(
        "algebra, world history, chemistry, biology, economics, geometry, statistics, physics, "
        "spelling, geography"
    ),
    plural=listed(
        "maths exams, essays, history dates, lab reports, book reviews, long poems, times tables, "
        "entrance tests, lecture notes, science projects"
    ),
    count=listed(
        "essay, maths test, thesis, oral exam, reading list, science project, term paper, history "
        "exam, book report, lab report"
    ),
    tasks=("get through {x}", "understand {x}", "remember {x}", "revise {x}", "make {x} less boring"),
    problems=(
        "I do not understand {x}",
        "{x} confuse{s} me",
        "I always forget {x}",
        "I have no time for {x}",
    ),
    risky=("crush {x}", "attack {x} in one night", "beat everyone at {x}"),
    tips=(
        "study in [short blocks|the morning|the library]",
        "explain {it} to [a friend|yourself|a child]",
        "make [cards|a list|a small chart]",
        "test yourself [daily|without notes]",
        "sleep before the big day",
        "solve [old papers|two problems a day]",
        "write [the main idea|a summary] in your own words",
        "begin with the [basics|examples|part you know]",
        "ask the teacher [early|one clear question]",
        "put your phone [away|in another room]",
        "read [aloud|the chapter twice]",
        "take [real breaks|a walk] between chapters",
    ),
    facts=(
        "{x} make{s} sense in small pieces",
        "the mind keeps what it repeats",
        "testing beats rereading",
        "{x} build{s} on a few ideas",
        "sleep fixes what you learned",
        "{x} {is} easier with examples",
        "everyone forgets [half|most] of it in a week",
    ),
)

MONEY = Domain(
    name="money",
    mass=listed("rent, pocket money, student debt, food spending, holiday money"),
    plural=listed(
        "savings, electricity bills, taxes, phone bills, vet bills, bank fees, food costs, heating "
        "bills, small debts, club fees"
    ),
    count=listed(
        "monthly budget, tax form, bank loan, savings account, phone contract, wedding budget, credit "
        "card, emergency fund, pension plan, household budget"
    ),
    tasks=("manage {x}", "plan {x}", "keep track of {x}", "understand {x}", "talk about {x} with my partner"),
    problems=("I worry about {x}", "{x} {is} getting out of hand", "I do not understand {x}"),
    risky=("slash {x}", "attack {x}", "kill off {x} for good"),
    tips=(
        "write down [every cost|what you spend] for a month",
        "compare [three offers|prices]",
        "put a little aside [each week|on payday]",
        "cancel [one subscription|what you never use]",
        "read the small print",
        "pay the [smallest|dearest] one first",
        "set a [limit|date] for it",
        "ask for a [discount|better rate]",
        "keep [the receipts|a small reserve]",
        "cook at home [more often|on weekdays]",
        "wait [a day|a week] before you buy",
        "check {it} [once a month|on Fridays]",
    ),
    facts=(
        "small costs add up",
        "{x} {is} easier to face in writing",
        "prices change with the season",
        "most people guess too low",
        "a plan beats a good intention",
        "{x} look{s} worse than {they} {is}",
        "banks like people who ask",
    ),
)

SLEEP = Domain(
    name="sleep",
    mass=listed("jet lag, bad sleep, snoring, night work, early rising"),
    plural=listed("afternoon naps, bad dreams, sleepless nights, late nights, early mornings"),
    count=listed(
        "evening routine, afternoon nap, sleep mask, sleep diary, morning routine, alarm clock, weekend "
        "nap, night shift, bed time, power nap"
    ),
    tasks=("deal with {x}", "improve {x}", "get used to {x}", "plan {x}", "feel better about {x}"),
    problems=("{x} leave{s} me tired", "I struggle with {x}", "{x} ruin{s} my week"),
    tips=(
        "go to bed at the same hour",
        "keep the room [dark|cool|quiet]",
        "skip coffee after [noon|lunch]",
        "put the screen away [an hour before|early]",
        "read a few pages",
        "take [a warm bath|a slow walk] in the evening",
        "get [daylight|fresh air] in the morning",
        "write down what worries you",
        "eat [early|light] at night",
        "breathe [slowly|deeply] for a minute",
        "get up if you cannot sleep",
        "change the [pillow|curtains]",
    ),
    facts=(
        "the body loves a rhythm",
        "{x} affect{s} almost everyone",
        "light tells the body to wake",
        "coffee stays in the blood for hours",
        "{x} get{s} better with [habit|time]",
        "a cool room helps",
        "one bad night does no harm",
    ),
)

HEALTH = Domain(
    name="health",
    mass=listed(
        "back pain, throat pain, sunburn, dry skin, low energy, neck pain, toothache, tension, hay "
        "fever, winter fatigue"
    ),
    plural=listed("headaches, sore muscles, tired eyes, cold hands, sore feet"),
    count=listed(
        "healthy diet, dentist visit, first aid kit, daily walk, check up, fitness plan, doctor "
        "visit, breathing exercise, screen break, skin routine"
    ),
    tasks=("deal with {x}", "prepare for {x}", "think about {x}", "live with {x}", "get help with {x}"),
    problems=("{x} bother{s} me", "{x} come{s} back every winter", "I am worried about {x}"),
    tips=(
        "drink [more water|warm tea]",
        "rest for [a day|a while]",
        "see a doctor if it [lasts|gets worse]",
        "take [short walks|breaks] during the day",
        "sit [upright|less]",
        "eat [more greens|at regular times]",
        "keep [warm|a small diary]",
        "stretch [your neck|every morning]",
        "wash your hands",
        "sleep [eight hours|enough]",
        "ask the pharmacist",
        "go outside [at noon|every day]",
    ),
    facts=(
        "{x} often pass{es} in [a few days|a week]",
        "the body needs time",
        "{x} {is} more common than you think",
        "rest does most of the work",
        "stress makes everything worse",
        "doctors see this every day",
        "small habits matter more than big plans",
    ),
)

TRAVEL = Domain(
    name="travel",
    mass=listed("train travel, travel insurance, hand luggage, night travel, bus travel"),
    plural=listed(
        "train tickets, cheap flights, city trips, hotel rooms, travel plans, guide books, museum "
        "tickets, bus tours, boat trips, long flights"
    ),
    count=listed(
        "weekend in Lisbon, trip to Norway, suitcase, train ride, beach holiday, trip to Vienna, "
        "passport, road trip, week in Crete, trip to Dublin, long flight, hostel, honeymoon, trip to "
        "Kyoto, city break"
    ),
    tasks=("plan {x}", "save money on {x}", "choose {x}", "prepare for {x}", "enjoy {x} with children"),
    problems=("{x} {is} too expensive", "{x} make{s} me nervous", "I know nothing about {x}"),
    risky=("smuggle myself a nap during {x}", "survive {x}", "kill time on {x}"),
    tips=(
        "book [early|on a weekday|in spring]",
        "pack [one bag|light|a scarf]",
        "compare [dates|two or three sites]",
        "keep [copies|a photo] of your papers",
        "learn [ten words|a few phrases]",
        "leave [a day|one evening] unplanned",
        "ask the locals where to eat",
        "walk [more|through the old town]",
        "carry some cash",
        "arrive [early|rested]",
        "bring [snacks|a good book]",
        "avoid the [school holidays|busy hours]",
    ),
    facts=(
        "{x} cost{s} less [off season|in the week]",
        "plans change on the road",
        "{x} {is} half the fun",
        "the best meals are in side streets",
        "queues are shorter in the morning",
        "{x} need{s} some slack",
        "lost papers cost days",
    ),
)

LANGUAGES = Domain(
    name="languages",
    mass=listed("Spanish, French, Italian, German, Japanese, Welsh, Greek, Dutch, Polish, Turkish"),
    plural=listed("French verbs, new words, Greek letters, German articles, Spanish songs"),
    count=listed("language course, accent, word list, language partner, foreign film"),
    tasks=(
        "learn {x}",
        "practise {x}",
        "remember more of {x}",
        "get comfortable with {x}",
        "find time for {x}",
    ),
    problems=("{x} scare{s} me", "I mix up {x}", "I made no progress with {x}"),
    tips=(
        "practise [ten minutes a day|at breakfast|on the bus]",
        "speak from the first [day|week]",
        "listen to [songs|the radio|slow talks]",
        "repeat each phrase [aloud|three times]",
        "write [a diary|five sentences]",
        "watch films with subtitles",
        "find a partner to talk to",
        "learn [whole phrases|the common words] first",
        "laugh at your mistakes",
        "put notes around the house",
        "read [children's books|short texts]",
        "review the old words",
    ),
    facts=(
        "{x} get{s} easier with the ear",
        "a thousand words go a long way",
        "mistakes teach the most",
        "{x} need{s} daily contact",
        "grammar follows practice",
        "everyone feels slow at first",
        "{x} open{s} many doors",
    ),
)

DOMAINS = (WORK, STUDY, MONEY, SLEEP, HEALTH, TRAVEL, LANGUAGES)
