from __future__ import annotations

import gzip
import json
import lzma
from functools import partial
from pathlib import Path

import datasets
import pytest

from trimtab.guidance.data.load import (
    load_preferences,
    load_prompts,
    load_rankings,
    load_rollouts,
    load_rows,
)
from trimtab.guidance.data.options import RowOptions
from trimtab.guidance.data.rows import (
    ROW_KINDS,
    Preference,
    Ranking,
    Rollout,
    Unpaired,
    parse_preference,
)
from trimtab.guidance.errors import DataError
from trimtab.guidance.text.encoding import Sampled
from trimtab.guidance.text.message import Message

SKIP = RowOptions(on_bad_rows="skip")
USER = {"role": "user", "content": "Hello?"}
ROWS = [
    {"prompt": "Hello?", "chosen": " Hi!", "rejected": " Go away."},
    {"prompt": "And now?", "chosen": " Tea.", "rejected": " Nothing."},
]
WANT = tuple(Preference(row["prompt"], row["chosen"], row["rejected"]) for row in ROWS)


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def write(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_strings_and_messages_mean_the_same():
    prompt = (Message("user", "Hello?"),)
    row = {"prompt": [USER], "chosen": [assistant("Hi!")], "rejected": [assistant("No.")]}
    assert parse_preference(row) == Preference(prompt, "Hi!", "No.")
    assert parse_preference({"prompt": [USER], "chosen": "Hi!", "rejected": "No."}).prompt == prompt


def test_keys_of_messages_are_kept_and_what_is_not_there_is_not():
    """A file of Parquet has the keys of all messages in each."""
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "args": {"z": 1, "a": None}}]}
    tool = {"role": "tool", "content": "x"}
    prompt = [{**USER, "name": "Al", "tool_calls": None}, {**call, "name": None}, tool]
    read = parse_preference({"prompt": prompt, "chosen": "Hi!", "rejected": "No."}).prompt
    assert [m.to_dict() for m in read] == [{**USER, "name": "Al"}, call, tool]
    assert hash(read) == hash(tuple(read))


def test_parts_of_text_are_read_as_the_server_reads_them():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    row = {"prompt": [{"role": "user", "content": parts}], "chosen": "Hi!", "rejected": "No."}
    assert parse_preference(row).prompt == (Message("user", "a\nb"),)


def test_a_weight_is_honoured_where_it_asks_for_what_is_done():
    """Prompts are not trained on, replies are."""
    prompt = [USER, {**assistant("a"), "weight": 0}, USER]
    row = {"prompt": prompt, "chosen": [{**assistant("Hi!"), "weight": 1}], "rejected": "No."}
    assert parse_preference(row) == parse_preference(row | {"prompt": [USER, assistant("a"), USER]})
    whole = [{**message, "weight": weight} for message, weight in ((USER, 0), (assistant("Hi!"), 1))]
    assert parse_preference({"chosen": whole, "rejected": [whole[0], assistant("No.")]}).chosen == "Hi!"


IMAGE = {"type": "image_url", "image_url": {"url": "x"}}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"prompt": [{**USER, "weight": 1}]}, "prompt has a message of weight 1"),
        ({"chosen": [{**assistant("a"), "weight": 0}]}, "chosen has weight 0"),
        ({"chosen": [{**assistant("a"), "tool_calls": [1]}]}, "chosen has tool_calls"),
        ({"rejected": [{**assistant("a"), "reasoning_content": "hm"}]}, "rejected has reasoning_content"),
        (
            {"prompt": [{"role": "user", "content": [IMAGE]}]},
            "image_url.*want a string or parts",
        ),
        ({"prompt": [{"role": "user"}]}, "no content"),
        ({"prompt": [{"role": "human", "content": "x"}]}, "want a role"),
    ],
)
def test_what_nothing_would_honour_is_refused_by_its_key(changes: dict[str, object], named: str):
    with pytest.raises(DataError, match=named):
        parse_preference({"prompt": [USER], "chosen": "Hi!", "rejected": "No."} | changes)
    both = {"chosen": [USER, assistant("a")], "rejected": [USER, {**assistant("b"), "name": "Al"}]}
    with pytest.raises(DataError, match="rejected has name"):
        parse_preference(both)


def test_without_a_prompt_what_both_replies_begin_with_is_the_prompt():
    row = {"chosen": "Human: hi\n\nAssistant: I think so", "rejected": "Human: hi\n\nAssistant: I thank you"}
    assert parse_preference(row) == Preference("Human: hi\n\nAssistant:", " I think so", " I thank you")
    chats = {"chosen": [USER, assistant("Hi!")], "rejected": [USER, assistant("No.")]}
    assert parse_preference(chats) == Preference((Message("user", "Hello?"),), "Hi!", "No.")


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"prompt": "p", "chosen": "a"}, "rejected is missing"),
        ({"prompt": "p", "chosen": "a", "rejected": ""}, "rejected is empty"),
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, "are the same"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "prompt must be a string or a list"),
        ({"prompt": [], "chosen": "a", "rejected": "b"}, "prompt must be a string or a list"),
        ({"prompt": [{"role": "boss", "content": "x"}], "chosen": "a", "rejected": "b"}, "prompt holds"),
        (
            {"prompt": [assistant("x")], "chosen": "a", "rejected": "b"},
            "ends with a message of the assistant",
        ),
        ({"prompt": "p", "chosen": [USER], "rejected": "b"}, "chosen must be one message of the assistant"),
        ({"chosen": "one", "rejected": "two"}, "begin with nothing in common"),
        ({"chosen": [assistant("a")], "rejected": [assistant("b")]}, "differ in more than the last"),
        (
            {"chosen": [USER, USER], "rejected": [USER, assistant("b")]},
            "must be one message of the assistant, got user's",
        ),
    ],
)
def test_a_bad_row_is_refused_by_the_field_that_is_wrong(row: dict[str, object], named: str):
    with pytest.raises(DataError, match=named):
        parse_preference(row)


@pytest.mark.parametrize(
    "kind", ["jsonl", "jsonl.gz", "jsonl.xz", "json", "json.gz", "json.xz", "parquet", "folder"]
)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, kind: str):
    path = tmp_path / f"rows.{kind}"
    text = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    if kind.startswith("json"):
        text = text if kind.startswith("jsonl") else json.dumps(ROWS).encode()
        path.write_bytes({".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)(text))
    elif kind == "parquet":
        datasets.Dataset.from_list(ROWS).to_parquet(path)
    else:
        datasets.Dataset.from_list(ROWS).save_to_disk(path)
    assert load_preferences(path).rows == WANT


def test_messages_survive_parquet(tmp_path: Path):
    row = {"prompt": [USER], "chosen": [assistant("Hi!")], "rejected": [assistant("No.")]}
    datasets.Dataset.from_list([row]).to_parquet(tmp_path / "rows.parquet")
    assert load_preferences(tmp_path / "rows.parquet").rows == (parse_preference(row),)


def test_bad_rows_are_refused_with_their_number_and_the_place_of_the_first(tmp_path: Path):
    path = write(tmp_path / "rows.jsonl", [ROWS[0], {"prompt": "p"}, 7])
    with path.open("a") as file:
        file.write("{not json\n")
    with pytest.raises(DataError, match=r"3 bad rows, first line 2: chosen is missing"):
        load_preferences(path)


def test_bad_rows_are_skipped_and_counted_on_demand(tmp_path: Path):
    loaded = load_preferences(write(tmp_path / "rows.jsonl", [{"prompt": "p"}, *ROWS]), SKIP)
    assert loaded.rows == WANT
    assert loaded.num_bad == 1
    assert loaded.first_bad == "line 1: chosen is missing"


def test_a_file_without_a_usable_row_is_refused_even_when_skipping(tmp_path: Path):
    with pytest.raises(DataError, match="all 1 are bad, first line 1"):
        load_preferences(write(tmp_path / "rows.jsonl", [{}]), SKIP)
    with pytest.raises(DataError, match="it is empty"):
        load_preferences(write(tmp_path / "empty.jsonl", []))


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("absent.jsonl", None, "no such file"),
        ("rows.txt", b"a,b\n", "must be .jsonl"),
        ("rows.parquet", b"PAR0", "cannot be read"),
        ("rows.jsonl.gz", b"\x1f\x8b broken", "cannot be read"),
        ("rows.jsonl", b"\xff\xfe", "cannot be read"),
        ("rows.json", b"3", "must hold a list of rows"),
        ("rows.json", b"[1,", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_in_one_line(tmp_path: Path, name, content, named):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=named) as caught:
        load_preferences(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_of_splits_asks_for_one_of_them(tmp_path: Path):
    rows = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "rows")
    with pytest.raises(DataError, match=r"holds the splits train, test.*rows:train"):
        load_preferences(tmp_path / "rows")
    assert load_preferences(Path(f"{tmp_path / 'rows'}:test")).rows == WANT
    assert load_preferences(tmp_path / "rows" / "train").rows == WANT


def test_columns_that_are_not_read_are_refused_by_name_or_ignored_on_demand(tmp_path: Path):
    path = write(tmp_path / "rows.jsonl", [ROWS[0] | {"sauce": "web", "margn": 1}, ROWS[1]])
    with pytest.raises(DataError, match="no column margn, sauce, known are chosen"):
        load_preferences(path)
    assert load_preferences(path, RowOptions(extra_columns="ignore")).rows == WANT


def test_each_kind_of_row_is_read_with_what_it_may_carry(tmp_path: Path):
    def load(loader, row):
        (one,) = loader(write(tmp_path / "rows.jsonl", [row])).rows
        return one

    assert load(load_prompts, {"prompt": "p"}) == "p"
    assert load(load_rollouts, {"prompt": "p", "completion": "c"}) == Rollout("p", "c")
    scored = {"completion": "", "token_ids": [4, 3], "is_cut": False, "reward": 1, "token_rewards": [0.5, 1]}
    assert load(load_rollouts, {"prompt": "p", **scored, "sample": 3, "strength": 2}) == Rollout(
        "p", "", Sampled((4, 3)), 1.0, (0.5, 1.0), 2.0
    )
    unpaired = {"prompt": "p", "completion": "c", "label": False}
    assert load(partial(load_rows, "unpaired"), unpaired) == Unpaired("p", "c", False)
    ranking = {"prompt": "p", "responses": ["a", "b"], "ranks": [2, 1]}
    assert load(load_rankings, ranking) == Ranking("p", ("a", "b"), (2.0, 1.0))
    sampled = load(load_rankings, ranking | {"token_ids": [[1], [2]], "is_cut": [True, False]}).sampled
    assert sampled == (Sampled((1,), True), Sampled((2,)))
    row = ROWS[0] | {"margin": 0.5, "chosen_token_ids": [1, 2], "chosen_is_cut": True}
    preference = load(load_preferences, row)
    assert (preference.margin, preference.chosen_sampled) == (0.5, Sampled((1, 2), True))


ROLLOUT = {"prompt": "p", "completion": "c"}


@pytest.mark.parametrize(
    ("kind", "row", "named"),
    [
        ("rollouts", ROLLOUT | {"completion": ""}, "completion is empty"),
        ("rollouts", ROLLOUT | {"reward": float("nan")}, "reward must hold finite numbers, got nan"),
        ("rollouts", ROLLOUT | {"reward": "0.5"}, "reward must hold finite numbers, got '0.5'"),
        ("rollouts", ROLLOUT | {"token_rewards": [1.0]}, "token_rewards need token_ids"),
        ("rollouts", ROLLOUT | {"token_ids": [1], "token_rewards": [1.0, 2.0]}, "holds 2 for 1"),
        ("rollouts", ROLLOUT | {"token_ids": [1], "token_rewards": [float("inf")]}, "token_rewards must"),
        ("rollouts", ROLLOUT | {"token_ids": []}, "token_ids must be a list of at least one"),
        ("rollouts", ROLLOUT | {"token_ids": [1], "is_cut": 1}, "is_cut must be true or false"),
        ("rollouts", ROLLOUT | {"is_cut": True}, "is_cut needs token_ids"),
        ("unpaired", ROLLOUT | {"label": 2}, "label must be true or false"),
        ("unpaired", ROLLOUT, "label is missing"),
        ("rankings", {"prompt": "p", "responses": ["a"], "ranks": [1]}, "at least 2"),
        ("rankings", {"prompt": "p", "responses": ["a", "b"], "ranks": [1]}, "ranks must be a list of 2"),
        ("rankings", {"prompt": "p", "responses": ["a", "b"], "ranks": [1, 1]}, "ranks are all the same"),
        ("rankings", {"prompt": "p", "responses": ["a", ""], "ranks": [1, 2]}, "responses is empty"),
        ("preferences", ROWS[0] | {"margin": "much"}, "margin must hold finite numbers"),
        ("preferences", {"chosen": "a b", "rejected": "a c", "chosen_token_ids": [1]}, "prompt is missing"),
        ("prompts", {}, "prompt is missing"),
    ],
)
def test_what_a_row_of_another_kind_may_not_hold_is_named(kind: str, row: dict[str, object], named: str):
    with pytest.raises(DataError, match=named):
        ROW_KINDS[kind].parse(row)
