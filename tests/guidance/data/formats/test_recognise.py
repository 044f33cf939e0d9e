"""Formats found, asked for, mapped by hand; and what an error tells of rows that fit nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from trimtab.guidance.data.load import load_rows
from trimtab.guidance.data.options import RowOptions, columns_for, format_for
from trimtab.guidance.data.rows import Preference, Rollout, Unpaired
from trimtab.guidance.errors import DataError
from trimtab.guidance.text.message import Message

SHAREGPT = {
    "conversations": [{"from": "human", "value": "Hello?"}],
    "chosen": {"from": "gpt", "value": "Hi!"},
    "rejected": {"from": "gpt", "value": "No."},
}
OURS = {"prompt": "Hello?", "chosen": "Hi!", "rejected": "No."}
STRANGE = {"question": "Hello?", "good": "Hi!", "bad": "No."}
TALK = "\n\nHuman: Hello?\n\nAssistant:"
HH = {"chosen": f"{TALK} I think so.", "rejected": f"{TALK} I thank you."}


def load(tmp_path: Path, kind: str, rows: list[Any], *, as_text: bool = False, **options: Any) -> list[Any]:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(load_rows(kind, path, RowOptions(**options), as_text=as_text).rows)


def test_columns_are_mapped_by_hand_also_from_inside_objects(tmp_path: Path):
    columns = "prompt=question,chosen=good,rejected=bad"
    want = [Preference("Hello?", "Hi!", "No.")]
    assert load(tmp_path, "preferences", [STRANGE | {"level": 3}], columns=columns) == want
    nested = {"q": {"text": "Hello?"}, "replies.best": "Hi!", "a": {"b": {"c": "No."}}}
    columns = "prompt=q.text, chosen=replies.best, rejected=a.b.c"
    assert load(tmp_path, "preferences", [nested], columns=columns) == want


def test_a_mapping_may_swap_columns(tmp_path: Path):
    swapped = load(tmp_path, "preferences", [OURS], columns="chosen=rejected,rejected=chosen")
    assert swapped == [Preference("Hello?", "No.", "Hi!")]


def test_a_mapping_may_name_a_formats_columns(tmp_path: Path):
    row = {"talk": [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Hi!"}], "thumb": True}
    want = [Unpaired((Message("user", "Hello?"),), "Hi!", True)]
    assert load(tmp_path, "unpaired", [row], columns="conversations=talk,label=thumb") == want


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ("prompt=quesion", r"no column quesion, there are question, good, bad"),
        ("promt=question", r"--columns promt=question: preferences read .*prompt.*, not promt"),
    ],
)
def test_a_mapping_with_an_unknown_name_lists_the_columns(tmp_path: Path, columns: str, named: str):
    with pytest.raises(DataError, match=named):
        load(tmp_path, "preferences", [STRANGE], columns=columns)


@pytest.mark.parametrize("columns", ["prompt", "prompt=", "=q", "prompt=a,prompt=b"])
def test_what_is_no_mapping_is_refused_before_anything_is_read(columns: str):
    with pytest.raises(ValueError, match="columns"):
        RowOptions(columns=columns)


def test_options_may_be_for_one_of_several_files():
    assert format_for("preferences:sharegpt,prompts:hh", "preferences") == "sharegpt"
    assert format_for("preferences:sharegpt,prompts:hh", "rollouts") == "auto"
    assert format_for("sharegpt", "rollouts") == "sharegpt"
    assert columns_for("preferences:prompt=q,chosen=a", "preferences") == {"prompt": "q", "chosen": "a"}
    assert columns_for("preferences:prompt=q,chosen=a", "prompts") == {"chosen": "a"}
    with pytest.raises(ValueError, match=r"format must be auto, trl, sharegpt.*got 'sharegtp'"):
        RowOptions(format="sharegtp")


@pytest.mark.parametrize(
    ("kind", "row", "named"),
    [
        (
            "preferences",
            STRANGE,
            "the row has question, good, bad: give --columns prompt=question,chosen=good,rejected=bad",
        ),
        ("preferences", {"q": 1, "x": 2}, "the row has q, x: map them with --columns chosen=…,rejected=…"),
        ("preferences", OURS | {"rejcted": "No.", "rejected": None}, "give --columns rejected=rejcted"),
        ("unpaired", SHAREGPT, "conversations, chosen, rejected: it holds preferences, so give it as --pref"),
        ("preferences", {"prompt": "p", "completion": "c", "label": True}, "give it as --unpaired"),
        ("preferences", {"instruction": "i", "input": "", "output": "o"}, "give it as --prompts"),
        ("prompts", {"text": "Once"}, "the row has text: give --columns prompt=text"),
    ],
)
def test_an_error_shows_the_rows_columns_and_what_would_read_it(
    tmp_path: Path, kind: str, row: dict[str, Any], named: str
):
    with pytest.raises(DataError, match=re.escape(named)):
        load(tmp_path, kind, [row])


def test_a_wrong_format_is_told_with_what_the_row_looks_like(tmp_path: Path):
    named = "the row has conversations, chosen, rejected; it looks like ShareGPT: give --format sharegpt"
    for wrong in ("hh", "trl"):
        with pytest.raises(DataError, match=re.escape(named)):
            load(tmp_path, "preferences", [SHAREGPT], format=wrong)
    assert len(load(tmp_path, "preferences", [SHAREGPT], format="sharegpt")) == 1


def test_rows_of_two_formats_are_refused_wherever_the_second_stands(tmp_path: Path):
    for count in (1, 200):
        rows = [OURS] * count + [SHAREGPT]
        with pytest.raises(DataError, match=rf"line 1 looks like trl, line {count + 1} like sharegpt"):
            load(tmp_path, "preferences", rows, on_bad_rows="skip")
        assert len(load(tmp_path, "preferences", rows, format="trl", on_bad_rows="skip")) == count


def test_a_row_that_may_be_two_formats_lists_them(tmp_path: Path):
    row = SHAREGPT | {"prompt": "p", "response_a": "x", "response_b": "y", "winner": "a"}
    del row["chosen"]
    with pytest.raises(DataError, match=r"may be sharegpt or comparison.*give --format sharegpt or"):
        load(tmp_path, "preferences", [row])


def test_transcripts_split_at_turns_also_as_text(tmp_path: Path):
    """Both replies begin with "I th": the words would split them inside the reply."""
    chat = [Preference((Message("user", "Hello?"),), "I think so.", "I thank you.")]
    text = [Preference(TALK, " I think so.", " I thank you.")]
    assert load(tmp_path, "preferences", [HH]) == chat
    assert load(tmp_path, "preferences", [HH], as_text=True) == text
    assert load(tmp_path, "preferences", [HH], format="trl") == text
    assert load(tmp_path, "prompts", [HH], as_text=True) == [TALK]


def test_transcripts_that_differ_before_their_last_turn_are_bad(tmp_path: Path):
    early = {"chosen": f"{TALK} A{TALK} x", "rejected": f"{TALK} B{TALK} y"}
    for as_text in (False, True):
        with pytest.raises(DataError, match="differ in more than the assistant's last turn"):
            load(tmp_path, "preferences", [early], as_text=as_text)


def test_other_keys_of_turns_are_kept_for_the_template(tmp_path: Path):
    from trimtab.guidance.data.formats.turns import as_turns  # noqa: PLC0415

    turn = {"from": "human", "value": "Hi", "weight": 1, "name": "Ann", "tool_calls": None}
    assert as_turns([turn], "x") == [{"role": "user", "content": "Hi", "weight": 1, "name": "Ann"}]


def test_tools_beside_a_conversation_are_not_dropped(tmp_path: Path):
    with pytest.raises(DataError, match="tools are described beside"):
        load(tmp_path, "preferences", [SHAREGPT | {"tools": "[{}]"}])


def test_metadata_is_named_and_a_misspelt_column_refused(tmp_path: Path):
    assert load(tmp_path, "rollouts", [{"prompt": "p", "completion": "c", "id": 3}]) == [Rollout("p", "c")]
    with pytest.raises(DataError, match="no column margn"):
        load(tmp_path, "preferences", [OURS | {"margn": 1}])
