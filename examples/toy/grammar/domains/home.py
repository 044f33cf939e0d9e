"""Domain of the home: repairs, cleaning, computers, vehicles, clothes."""

from __future__ import annotations

from examples.toy.grammar.domain import Domain
from examples.toy.grammar.writer import listed

REPAIRS = Domain(
    name="repairs",
    plural=listed(
        "door hinges, floor boards, roof tiles, window frames, kitchen shelves, cupboard doors, light "
        "switches, curtain rods, wall tiles, water pipes"
    ),
    count=listed(
        "kitchen tap, wooden chair, garden fence, table leg, door handle, bathroom mirror, book "
        "shelf, light switch, toilet seat, drawer, window latch, ceiling lamp, shower head, wall "
        "clock, bed frame, letter box, garage door, wobbly table, wash basin, cupboard door"
    ),
    tasks=("fix {x}", "replace {x}", "paint {x}", "clean {x} before painting", "take {x} apart"),
    problems=("{x} {is} broken", "{x} squeak{s}", "{x} came loose", "{x} will not move"),
    risky=("rip out {x}", "smash {x} to pieces", "cut through {x} with a saw", "burn the old paint off {x}"),
    tips=(
        "turn off the [water|power] first",
        "take [a photo|notes] before you undo anything",
        "use the [right|smallest] screwdriver",
        "tighten the [screws|bolts] by hand",
        "sand the [edges|surface|old paint] lightly",
        "measure [twice|the gap|each side]",
        "put [a drop of oil|some wax] on the joint",
        "let the glue dry [overnight|for a day]",
        "buy [spare parts|longer screws|a new seal]",
        "hold {it} steady with a clamp",
        "test {it} before you close up",
        "wear [gloves|glasses] while you work",
        "clean off the [rust|dust|old glue]",
    ),
    facts=(
        "most of the trouble is a loose screw",
        "{x} last{s} longer with [a little oil|dry air]",
        "old glue never holds twice",
        "cheap screws strip",
        "{x} {is} made to come apart",
        "wood swells in [damp rooms|winter]",
        "a photo saves an hour of guessing",
    ),
)

CLEANING = Domain(
    name="cleaning",
    plural=listed(
        "oven trays, carpets, bathroom tiles, curtains, dusty shelves, windows, wine glasses, wool "
        "blankets, silver spoons, kitchen tiles"
    ),
    count=listed(
        "oven, leather sofa, mattress, coffee machine, shower, fridge, carpet, kitchen sink, steam iron, rug"
    ),
    tasks=("clean {x}", "get stains out of {x}", "keep {x} fresh", "dry {x}", "remove dust from {x}"),
    problems=("{x} smell{s} strange", "{x} {is} covered in stains", "{x} never stay{s} clean"),
    risky=("kill the germs on {x}", "destroy the mould on {x}", "use strong acid on {x}"),
    tips=(
        "use [warm water|mild soap|a soft brush]",
        "mix [vinegar|baking soda|salt] with water",
        "open a window",
        "wipe {it} [gently|from top to bottom|in circles]",
        "rinse {it} [twice|with cold water]",
        "let it soak for [an hour|a few minutes]",
        "test a hidden corner first",
        "dry {it} [in the shade|with a clean cloth]",
        "dust [before|every week before] you wash",
        "work on [small areas|one side] at a time",
        "change the water often",
        "do a little every [day|Sunday]",
    ),
    facts=(
        "fresh stains come out easily",
        "hot water sets some stains",
        "{x} hold{s} more dust than you see",
        "too much soap leaves a film",
        "damp cloths catch more dust",
        "[vinegar|soda] takes away the smell",
        "{x} {is} easier to clean while warm",
    ),
)

COMPUTERS = Domain(
    name="computers",
    mass=listed("old software, email, music software, home internet, photo storage"),
    plural=listed(
        "passwords, backup files, photo folders, phone contacts, printer drivers, text documents, "
        "browser tabs, video calls, web pages, log files"
    ),
    count=listed(
        "laptop, printer, smart watch, keyboard, web page, spreadsheet, wireless network, tablet, home "
        "server, inbox, computer mouse, screen, web camera, text editor, memory card"
    ),
    tasks=("set up {x}", "speed up {x}", "back up {x}", "organise {x}", "protect {x}"),
    problems=("{x} {is} very slow", "{x} stopped working", "I cannot open {x}", "{x} keep{s} freezing"),
    risky=(
        "kill a frozen program on {x}",
        "break into {x} after I lost my own password",
        "wipe everything from {x}",
    ),
    tips=(
        "restart everything [once|first]",
        "install the [updates|newest version]",
        "keep [two copies|a spare] of your work",
        "close what you do not use",
        "read the error [slowly|aloud]",
        "check the [cable|settings|battery]",
        "choose a [long|fresh] password",
        "delete [old files|the cache|what you never open]",
        "search for the exact message",
        "ask [support|a colleague] with a screenshot",
        "make a copy before you change anything",
        "name things [clearly|by date]",
    ),
    facts=(
        "a restart solves [half|most] of it",
        "{x} slow{s} down when the disk is full",
        "updates close many holes",
        "cables fail more often than chips",
        "{x} need{s} [some free space|a clean start]",
        "nobody reads the settings until it breaks",
        "old drivers cause strange errors",
    ),
)

VEHICLES = Domain(
    name="vehicles",
    plural=listed(
        "winter tyres, bike brakes, head lights, car seats, bike gears, wiper blades, bike lamps, "
        "brake pads, tyre chains, seat belts"
    ),
    count=listed(
        "bicycle, old car, bike chain, scooter, flat tyre, van, car battery, motorbike, bike tyre, trailer"
    ),
    tasks=("repair {x}", "look after {x}", "buy {x} second hand", "clean {x}", "get {x} ready for winter"),
    problems=("{x} make{s} a strange noise", "{x} will not start in the cold", "{x} {is} worn out"),
    risky=("tear the rust off {x}", "drill a hole in {x}", "kill the squeak of {x}"),
    tips=(
        "check the [pressure|oil|brakes] every month",
        "keep {it} [dry|clean|under a roof]",
        "read the manual",
        "wipe off the [mud|salt|rust]",
        "oil the [moving parts|chain] lightly",
        "tighten the [bolts|cables]",
        "ask a mechanic for a price first",
        "listen for [clicks|rattles]",
        "take a [short|slow] test ride",
        "carry a spare [tube|fuse|key]",
        "park in the shade",
        "book a [service|check] before winter",
    ),
    facts=(
        "rust starts [small|under the paint]",
        "{x} wear{s} faster in the rain",
        "low pressure wastes fuel",
        "{x} need{s} a check [twice a year|every spring]",
        "salt eats metal",
        "a clean chain lasts twice as long",
        "cold weather drains the battery",
    ),
)

CLOTHES = Domain(
    name="clothes",
    mass=listed("denim, wool, velvet, linen, tweed"),
    plural=listed(
        "jeans, leather shoes, wool gloves, shirts, running shoes, socks, trousers, rain boots, "
        "summer dresses, white shirts"
    ),
    count=listed(
        "winter coat, silk scarf, wool jumper, suit, leather jacket, dress, hat, cotton shirt, "
        "raincoat, linen shirt"
    ),
    tasks=("wash {x}", "iron {x}", "choose {x}", "mend {x}", "store {x}", "wear {x} at work"),
    problems=("{x} shrank in the wash", "{x} look{s} worn", "{x} do{es} not fit", "{x} {is} full of creases"),
    risky=("bleach {x}", "kill the moths in {x}", "cut up {x}"),
    tips=(
        "wash {it} [cold|inside out|by hand]",
        "hang {it} [in the shade|on a wide hanger]",
        "read the label",
        "use [little|mild] soap",
        "put {it} on [twice|in daylight]",
        "pick a [plain|dark|light] colour",
        "sew the hole [early|from the inside]",
        "steam {it} [lightly|in the bathroom]",
        "brush off the [dust|mud|hair]",
        "fold {it} [loosely|along the seams]",
        "let {it} dry flat",
        "pair {it} with something [simple|bright|warm]",
    ),
    facts=(
        "heat shrinks [most fibres|wool]",
        "{x} last{s} longer when washed cold",
        "dark colours fade in the sun",
        "{x} look{s} better with a good fit",
        "small holes grow",
        "moths love dark corners",
        "{x} suit{s} [most people|any season]",
    ),
)

DOMAINS = (REPAIRS, CLEANING, COMPUTERS, VEHICLES, CLOTHES)
