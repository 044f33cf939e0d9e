"""Domain of the kitchen: cooking, baking, drinks."""

from __future__ import annotations

from examples.toy.grammar.domain import Domain
from examples.toy.grammar.writer import listed

COOKING = Domain(
    name="cooking",
    mass=listed(
        "tomato soup, lentil stew, pumpkin soup, fried rice, onion soup, chicken curry, potato salad, "
        "mushroom rice, bean chili, fish stew, roast beef, noodle soup, egg salad, garlic butter, pea "
        "soup"
    ),
    plural=listed(
        "meatballs, dumplings, pancakes, baked beans, scrambled eggs, fish cakes, stuffed peppers, "
        "roast carrots, fried noodles, potato wedges, lamb chops, spring rolls, boiled eggs, grilled "
        "mushrooms, sweet potatoes"
    ),
    count=listed(
        "omelette, pot roast, salad dressing, vegetable pie, cheese sauce, risotto, roast chicken, "
        "bean burger, beef stew, fish pie"
    ),
    tasks=(
        "cook {x}",
        "make {x}",
        "season {x}",
        "serve {x} to [guests|six people|my family]",
        "keep {x} warm",
        "prepare {x} ahead",
    ),
    problems=(
        "{x} taste{s} flat",
        "{x} {is} too salty",
        "{x} keep{s} burning",
        "{x} turn{s} out dry",
    ),
    risky=(
        "kill the smell of {x}",
        "beat the eggs for {x}",
        "set {x} on fire with brandy",
        "smash the garlic for {x}",
    ),
    tips=(
        "start with a [hot|clean|heavy|wide] pan",
        "keep the heat [low|gentle|steady] for [ten minutes|half an hour|most of the time]",
        "add the salt [late|early|little by little]",
        "chop the [herbs|onions|vegetables] [finely|thinly|before you begin]",
        "taste {it} [twice|often|before you serve]",
        "let {it} rest for [five|ten|twenty] minutes",
        "stir {it} [slowly|now and then|with a wooden spoon]",
        "finish {it} with [lemon|fresh herbs|a little cream|black pepper]",
        "use [good stock|ripe vegetables|fresh oil]",
        "put a lid on the [pan|pot]",
        "measure the [water|spices|oil] first",
        "brown the [edges|onions|base] before the rest goes in",
        "warm the plates [in the oven|a little]",
        "leave room in the [pot|pan] for the steam",
    ),
    facts=(
        "{x} taste{s} best [the next day|with fresh herbs|straight from the pot]",
        "[slow heat|a heavy pan] keeps {x} from burning",
        "{x} need{s} [less salt|more time|more pepper] than most cooks think",
        "the flavour comes [late|from the base|with time]",
        "salt draws out the water",
        "steam does [half|most] of the work",
        "a crowded pan [cools down|never browns]",
        "{x} keep{s} for [two|three] days in the fridge",
    ),
)

BAKING = Domain(
    name="baking",
    mass=listed(
        "rye bread, apple cake, ginger bread, carrot cake, banana bread, pizza dough, lemon cake, "
        "corn bread, chocolate cake, plum cake"
    ),
    plural=listed(
        "oat cookies, cinnamon rolls, scones, waffles, muffins, almond biscuits, bread rolls, butter "
        "cookies, cream puffs, brownies"
    ),
    count=listed(
        "cherry tart, sponge cake, white loaf, pie crust, cheese cake, plum pie, birthday cake, fruit "
        "tart, sourdough loaf, apple pie"
    ),
    tasks=(
        "bake {x}",
        "make {x} [rise|softer|less sweet]",
        "decorate {x}",
        "store {x}",
        "bake {x} without eggs",
    ),
    problems=(
        "{x} come{s} out dense",
        "{x} stick{s} to the tin",
        "{x} {is} raw in the middle",
        "{x} fall{s} apart",
    ),
    risky=(
        "crush nuts for {x}",
        "beat the dough for {x}",
        "punch down the dough for {x}",
        "cut {x} with a sharp knife",
    ),
    tips=(
        "heat the oven [early|well ahead|before you mix]",
        "weigh the [flour|sugar|butter] on a scale",
        "sift the flour [once|twice]",
        "use [soft|cold|plain] butter",
        "line the tin with [paper|foil]",
        "let the dough rest [overnight|for an hour|in a warm place]",
        "bake {it} on the [middle|lower] shelf",
        "turn the tray halfway through",
        "cool {it} on a rack",
        "test the middle with a [stick|thin knife]",
        "fold the eggs in [slowly|by hand]",
        "keep the oven door shut",
        "brush the top with [milk|egg|honey]",
    ),
    facts=(
        "{x} need{s} [patience|a hot oven|a cool kitchen]",
        "warm dough rises [faster|in half the time]",
        "every oven [runs a little hot|has a cold corner]",
        "too much flour makes {x} heavy",
        "sugar browns [quickly|near the end]",
        "{x} freeze{s} [well|for a month]",
        "the crust tells you [when to stop|more than the clock]",
    ),
)

DRINKS = Domain(
    name="drinks",
    mass=listed(
        "green tea, iced coffee, lemonade, apple juice, mint tea, hot chocolate, black coffee, ginger "
        "tea, orange juice, herbal tea"
    ),
    plural=listed("smoothies, fruit punches, milk shakes, iced teas, berry sodas"),
    count=listed("berry smoothie, cappuccino, fruit punch, oat latte, milk shake"),
    tasks=("make {x}", "sweeten {x}", "serve {x} at a party", "make {x} stronger", "get {x} right"),
    problems=("{x} taste{s} bitter", "{x} turn{s} out watery", "{x} {is} far too sweet"),
    risky=("kill the bitter taste of {x}", "crush ice for {x}", "shoot down a glass of {x}"),
    tips=(
        "use [cold|fresh|filtered] water",
        "warm the cup first",
        "add [ice|sugar|milk] at the end",
        "let {it} stand for [two|three|four] minutes",
        "crush the [mint|fruit|ice] a little",
        "pour {it} slowly",
        "strain {it} through a fine cloth",
        "buy [whole beans|loose leaves|ripe fruit]",
        "keep the water just below boiling",
        "stir in a [pinch of salt|slice of lemon|spoon of honey]",
    ),
    facts=(
        "boiling water makes {x} bitter",
        "{x} {is} better [fresh|in a thick glass|in small sips]",
        "old leaves lose their taste",
        "cold drinks need more sugar",
        "[ice|milk] softens the taste",
        "{x} go{es} well with [cake|breakfast|a biscuit]",
    ),
)

DOMAINS = (COOKING, BAKING, DRINKS)
