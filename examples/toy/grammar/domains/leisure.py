"""Domain of leisure: music, crafts, photography, books, games."""

from __future__ import annotations

from examples.toy.grammar.domain import Domain
from examples.toy.grammar.writer import listed

MUSIC = Domain(
    name="music",
    mass=listed("jazz, folk music, choir singing, piano practice, opera"),
    plural=listed(
        "guitar chords, drum beats, piano scales, song lyrics, violin lessons, love songs, sheet "
        "notes, flute lessons, bass lines, folk songs"
    ),
    count=listed(
        "guitar, song, violin, piano piece, drum kit, flute, playlist, choir, love song, cello, "
        "trumpet, harp, melody, ukulele, banjo"
    ),
    tasks=("practise {x}", "learn {x}", "enjoy {x}", "get better with {x}", "teach {x} to a beginner"),
    problems=("{x} sound{s} wrong", "{x} {is} too difficult", "I lost interest in {x}"),
    risky=("kill it on stage with {x}", "attack {x} with more force", "steal the show with {x}"),
    tips=(
        "play [slowly|with a clock|in short sessions]",
        "count the beat aloud",
        "listen to [a recording|the great players]",
        "record yourself",
        "repeat the [hard|last] part",
        "tune [before you start|by ear]",
        "relax your [hands|shoulders|jaw]",
        "start with [two notes|one hand|a simple tune]",
        "join a [group|small band]",
        "practise [daily|before breakfast]",
        "sing [the line|along]",
        "take a lesson [now and then|once a month]",
    ),
    facts=(
        "{x} take{s} [months|patience]",
        "slow practice makes fast fingers",
        "{x} sound{s} better in a small room",
        "the ear learns first",
        "rhythm carries everything",
        "even masters repeat scales",
        "{x} come{s} alive with others",
    ),
)

CRAFTS = Domain(
    name="crafts",
    mass=listed(
        "knitting, pottery, oil paint, origami, embroidery, calligraphy, wood carving, quilting, "
        "weaving, paper art"
    ),
    plural=listed(
        "wool hats, clay pots, water colours, candles, paper flowers, greeting cards, wooden spoons, "
        "bead chains, felt toys, picture frames"
    ),
    count=listed(
        "knitted scarf, portrait, bird house, paper lantern, quilt, clay bowl, sketch book, wooden "
        "toy, landscape, basket"
    ),
    tasks=("start with {x}", "make {x}", "get better at {x}", "sell {x}", "finish {x} in a weekend"),
    problems=("{x} never look{s} right", "{x} take{s} me forever", "I ruined {x}"),
    risky=("burn a pattern into {x}", "hammer {x} into shape", "shoot a video of {x}"),
    tips=(
        "begin with [cheap|simple|soft] material",
        "draw [a plan|the outline] first",
        "use [good light|a steady table]",
        "work in [thin layers|small steps]",
        "keep your tools sharp",
        "let it dry [fully|overnight]",
        "copy [a master|an old pattern] once",
        "practise on scraps",
        "step back [often|and look]",
        "leave the details for the end",
        "choose [two colours|a small size]",
        "watch someone do it",
    ),
    facts=(
        "{x} reward{s} [slow hands|patience]",
        "first tries are for learning",
        "good tools do half the work",
        "{x} {is} mostly preparation",
        "thin layers dry evenly",
        "mistakes give {x} character",
        "the eye sees more after a break",
    ),
)

PHOTOS = Domain(
    name="photography",
    plural=listed(
        "holiday photos, night photos, wedding pictures, bird photos, old negatives, family pictures, "
        "travel photos, food pictures, baby photos, macro shots"
    ),
    count=listed(
        "camera, photo album, tripod, family portrait, zoom lens, film camera, photo book, sunset "
        "picture, picture wall, pocket camera"
    ),
    tasks=("improve {x}", "sort {x}", "choose {x}", "print {x}", "get started with {x}"),
    problems=("{x} come{s} out dark", "{x} look{s} blurry", "I cannot decide on {x}"),
    risky=("shoot {x} in the dark", "shoot better pictures for {x}", "steal ideas for {x}"),
    tips=(
        "use the light from a window",
        "hold the camera [still|with both hands]",
        "get [closer|down low]",
        "keep the [background|frame] simple",
        "shoot [early|before sunset]",
        "take [ten|several] and keep one",
        "clean the lens",
        "wait for the [moment|right light]",
        "turn the flash off",
        "save [two copies|the best ones]",
        "edit [lightly|the next day]",
        "focus on the eyes",
    ),
    facts=(
        "light matters more than gear",
        "{x} need{s} a clear subject",
        "most people stand too far away",
        "noon light is harsh",
        "{x} {is} worth sorting",
        "a steady hand beats a big lens",
        "less in the frame says more",
    ),
)

READING = Domain(
    name="reading",
    mass=listed("poetry, science fiction, classic books, local news, fantasy"),
    plural=listed(
        "crime novels, short stories, travel tales, comic books, fairy tales, travel books, diaries, old "
        "letters, plays, ghost stories"
    ),
    count=listed(
        "book club, novel, memoir, short story, speech, poem, blog, letter to a friend, mystery, "
        "wedding speech"
    ),
    tasks=("enjoy {x}", "write about {x}", "find time for {x}", "talk about {x}", "get started with {x}"),
    problems=("I never finish {x}", "{x} bore{s} me", "I have no ideas for {x}"),
    tips=(
        "read [ten pages|a little] a day",
        "write [the first line|one page] quickly",
        "skip the dull parts",
        "keep a [note book|pencil] near",
        "read it aloud",
        "cut [every third word|the long sentences]",
        "start in the middle",
        "set a timer for [ten|twenty] minutes",
        "ask a librarian",
        "choose [a quiet corner|a good lamp]",
        "share it with [a friend|one reader]",
        "rest it for a night",
    ),
    facts=(
        "{x} need{s} no hurry",
        "nobody finishes every book",
        "short lines are stronger",
        "{x} grow{s} on you",
        "the first draft is always rough",
        "good readers skip",
        "every page teaches something",
    ),
)

GAMES = Domain(
    name="games",
    mass=listed("chess, poker, sudoku, darts, bowling"),
    plural=listed(
        "card games, board games, crosswords, puzzles, video games, chess openings, quiz questions, "
        "magic tricks, word games, jigsaws"
    ),
    count=listed(
        "chess opening, game night, card trick, crossword, spelling bee, puzzle, treasure hunt, board game, "
        "magic show, card game"
    ),
    tasks=("get better at {x}", "prepare {x}", "explain {x} to children", "choose {x}", "enjoy {x} more"),
    problems=("I always lose at {x}", "{x} take{s} all evening", "my friends find {x} dull"),
    risky=("destroy my friends at {x}", "attack early in {x}", "beat my sister at {x}"),
    tips=(
        "learn [the rules|one new move] at a time",
        "play [slowly|with better players]",
        "think [two steps|one turn] ahead",
        "watch what the others do",
        "keep [the teams small|score on paper]",
        "start with the [corners|easy ones]",
        "take [a break|turns]",
        "review the games you lost",
        "set a time limit",
        "have snacks ready",
        "practise [in front of a mirror|a little every day]",
        "let the youngest begin",
    ),
    facts=(
        "{x} {is} more fun in company",
        "losing teaches the most",
        "patience wins more than luck",
        "{x} train{s} the memory",
        "simple rules are the best",
        "good players see patterns",
        "nobody wins every time",
    ),
)

DOMAINS = (MUSIC, CRAFTS, PHOTOS, READING, GAMES)
