"""Prompt lookup on the CPU: greedy edits, copies and extractions with and without `--speculate ngram`.

    python -m benchmarks.cpu.lookup --model MODEL_FOLDER

Both take turns, request after request, and must give the same tokens. Prefill counts, and nothing of a prompt
is cached. The last line is one JSON document.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import common
from benchmarks.common import Document, ratio_of, spread_of, take_turns
from trimtab.guidance.model_names import DEFAULT_MODEL
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.request import Request, SamplingParams
from trimtab.server.rollouts.sample import sample

EDITS = (
    "The libary opens at nine. Visitors must leave there bags at the desk, and may take up to five books "
    "home. Books that are returned late cost ten cents a day.",
    "We was happy to hear that your team has finished the bridge. The mayor will opens it on Friday, and the "
    "school choir are going to sing.",
    "To bake the bread, mix flour and watter, add a spoon of salt, and let the dough rest for two hour. Then "
    "put it into a hot oven until it's crust is brown.",
    "My grandmother grows tomatos, beans and a lot of flowers in her garden. Every mornings she waters them "
    "before the sun gets to hot.",
    "The train from Geneva arives at noon and leaves again twenty minutes later. Passengers which travel to "
    "Milan must change in the next station.",
    "Please find the report atached. It describes how the pump failed, what we has done to repair it, and "
    "how much the spare parts will costs.",
    "Bees dance to tell each others where flowers are. The direction of the dance show the way, and its "
    "lenght tells how far the flowers are.",
    "The museum have three floors. On the first one there is paintings, on the second one old maps, and the "
    "third is closed untill spring.",
    "He runned along the river every day until the snow came. Now he swim in the indoor pool and read more "
    "books then before.",
    "Our new phone weigh less than an apple, last two days without charging, and its camera see in the dark. "
    "It will be avaible in June.",
)
LISTS = (
    ("fruit", "apple, 3 kg\nhammer, 1 piece\npear, 2 kg\nnails, 200 pieces\nplum, 5 kg\nsaw, 1 piece"),
    ("errors", "10:01 INFO started\n10:02 ERROR disk full\n10:03 INFO retry\n10:04 ERROR no route to host"),
    ("cities in Italy", "Rome, Italy\nLyon, France\nTurin, Italy\nBonn, Germany\nBari, Italy\nNice, France"),
    (
        "functions",
        "import os\ndef read(path):\nLIMIT = 10\ndef write(path, text):\nprint(LIMIT)\ndef close(file):",
    ),
    (
        "questions",
        "We met at noon.\nWhere is the key?\nIt rained all day.\nWho has seen the cat?\nI am tired.",
    ),
    (
        "open tasks",
        "[x] buy paint\n[ ] clean the brushes\n[x] call the owner\n[ ] paint the door\n[ ] send the bill",
    ),
    (
        "birds",
        "sparrow: small, brown\ntrout: lives in rivers\nowl: hunts at night\npike: has teeth\nheron: grey",
    ),
    ("prices above 50", "lamp 35\nchair 80\ndesk 240\ncup 4\nshelf 95\npen 2"),
    ("e-mail addresses", "Ann Lee\nann@lee.org\n12 Hill Road\nBob Ray\nbob.ray@mail.com\n7 Lake Street"),
    (
        "meetings on Monday",
        "Mon 9:00 budget\nTue 10:00 hiring\nMon 11:30 design\nWed 9:00 sales\nMon 16:00 review",
    ),
)
RECORDS = (
    ("name, age, city", "Maria Keller is 34 years old. She lives in Zurich and works as a nurse."),
    ("title, author, year", "In 1897 Bram Stoker published a novel about a count, which he called Dracula."),
    ("from, to, date", "Hi, I want to fly from Oslo to Madrid on 14 May, please, and back a week later."),
    ("product, quantity, price", "Your order of 12 oak shelves was received. Each costs 45 dollars."),
    ("company, founded, employees", "Nordwind was founded in 1982, and has 640 employees who build sails."),
    ("street, number, city", "The parcel goes to the yellow house, number 18 in Garden Street, Boston."),
    ("event, place, time", "The summer concert begins at 19:30 in the old town hall of Salzburg."),
    ("animal, weight, food", "The zoo's oldest tortoise weighs 212 kilograms and eats hay and carrots."),
    ("team, opponent, score", "The Tigers beat the Blue Sharks 4:1 in front of nine thousand people."),
    ("phone, name, reason", "Call Peter Novak back at 555-0188; it is about the broken heating in flat 6."),
)
TASKS: dict[str, tuple[str, ...]] = {
    "edit": tuple(
        f"Rewrite this text, fixing its mistakes and changing nothing else:\n\n{text}" for text in EDITS
    ),
    "copy": tuple(f"Copy the lines that are {what}, and no others:\n\n{lines}" for what, lines in LISTS),
    "JSON": tuple(
        f"Give the {fields} of this text as a JSON object with these keys:\n\n{text}"
        for fields, text in RECORDS
    ),
}
SPECULATE = ("off", "ngram")


@dataclass(frozen=True, slots=True)
class LookupConfig:
    """model: a folder of a chat model; SmolLM2-135M-Instruct without one. rows: requests under way at a time.
    repeats: turns of each, after one to warm up."""

    model: Path | None = None
    weights: str = "auto"
    rows: tuple[int, ...] = (1, 4)
    new_tokens: int = 96
    repeats: int = 3
    out: Path | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of all requests of a task. steps: that tokens were drawn in, counted for each reply."""

    seconds: float
    steps: int
    replies: tuple[tuple[int, ...], ...]


def measure(config: LookupConfig) -> Document:
    engines = {
        speculate: Engine.from_config(
            EngineConfig(
                config.model or DEFAULT_MODEL,
                weights=config.weights,  # type: ignore[arg-type]
                speculate=speculate,  # type: ignore[arg-type]
                cpu_backend="native",
                prefix_caching=False,
            )
        )
        for speculate in SPECULATE
    }
    return {
        "tasks": {
            task: {str(rows): measure_task(engines, prompts, config, rows) for rows in config.rows}
            for task, prompts in TASKS.items()
        }
    }


def measure_task(
    engines: dict[str, Engine], prompts: Sequence[str], config: LookupConfig, rows: int
) -> Document:
    runs = {name: partial(run, engine, prompts, config, rows) for name, engine in engines.items()}
    found = take_turns(runs, config.repeats, warm_up=1, progress=f"{rows} rows")
    replies = found["off"][0].replies
    assert all(each.replies == replies for outcomes in found.values() for each in outcomes)
    num_tokens, (off, ngram) = (
        sum(map(len, replies)),
        ([each.seconds for each in found[s]] for s in SPECULATE),
    )
    return {
        "tokens": num_tokens,
        "tokens_per_step": round(num_tokens / found["ngram"][0].steps, 3),
        "tokens_per_second": {
            name: spread_of([num_tokens / s for s in times]).as_dict()
            for name, times in zip(SPECULATE, (off, ngram), strict=True)
        },
        "ratio": ratio_of(off, ngram).as_dict(),
    }


_numbers = itertools.count()


def run(engine: Engine, prompts: Sequence[str], config: LookupConfig, rows: int, turn: int) -> Outcome:
    """Greedy replies to the prompts as chats, so many at a time."""
    sampling = SamplingParams(max_tokens=config.new_tokens, temperature=0)
    requests = [Request(str(next(_numbers)), chat(engine, prompt), sampling) for prompt in prompts]
    before, start = engine.stats.num_accepted, time.perf_counter()
    replies = [
        tuple(reply.token_ids)
        for first in range(0, len(requests), rows)
        for reply in sample(engine, requests[first : first + rows])
    ]
    seconds = time.perf_counter() - start
    steps = sum(map(len, replies)) - (engine.stats.num_accepted - before)
    return Outcome(seconds, steps, tuple(replies))


def chat(engine: Engine, prompt: str) -> tuple[int, ...]:
    messages = [{"role": "user", "content": prompt}]
    tokenizer = engine.policy.tokenizer
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def table(found: Document) -> str:
    columns = ["task", "rows", "tokens a step", "tokens/s without", "tokens/s with", "ratio"]
    return common.as_table(
        columns,
        [
            [task, rows, at["tokens_per_step"], *at["tokens_per_second"].values(), at["ratio"]]
            for task, by_rows in found["tasks"].items()
            for rows, at in by_rows.items()
        ],
    )


if __name__ == "__main__":
    common.main(LookupConfig, measure, table)
