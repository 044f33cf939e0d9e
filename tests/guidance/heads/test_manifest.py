from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from trimtab.guidance.errors import HeadError
from trimtab.guidance.heads.manifest import (
    REMEMBERING,
    AdvantagePart,
    BaseModel,
    Manifest,
    Parts,
    ScalarPart,
    load_manifest,
    parse_manifest,
)

MANIFEST = Manifest(
    name="kind",
    parts=Parts(AdvantagePart(form="tied", rank=8, value_per_advantage=0.25), ScalarPart("mlp", 16)),
    hidden_size=32,
    vocab_size=27,
    base_model=BaseModel("tiny", "f", "t", ""),
    reward_mean=1.5,
    reward_std=0.5,
    trained_on="10 pairs",
    metrics={"reward_accuracy": 0.75},
)


def edited(**changes: object) -> str:
    return json.dumps(json.loads(MANIFEST.to_json()) | changes)


def edited_part(part: str, **changes: object) -> str:
    data = json.loads(MANIFEST.to_json())
    data["parts"][part] |= changes
    return json.dumps(data)


def test_a_manifest_survives_the_round_trip():
    assert parse_manifest(MANIFEST.to_json()) == MANIFEST


def test_an_absent_part_is_absent_from_the_file():
    assert set(json.loads(MANIFEST.to_json())["parts"]) == {"advantage", "value"}


def test_bins_survive_the_round_trip_and_a_plain_scalar_says_nothing_of_them():
    binned = dataclasses.replace(
        MANIFEST, parts=Parts(value=ScalarPart("linear", bins=5, low=-1.0, high=2.0), reward=ScalarPart())
    )
    assert parse_manifest(binned.to_json()) == binned
    parts = json.loads(binned.to_json())["parts"]
    assert parts["value"].keys() - parts["reward"].keys() == {"bins", "low", "high"}


def test_units_survive_the_round_trip_and_what_remembers_nothing_says_nothing_of_them():
    for form in REMEMBERING:
        told = dataclasses.replace(
            MANIFEST, parts=Parts(value=ScalarPart(form, units=7), reward=ScalarPart())
        )
        assert parse_manifest(told.to_json()) == told
        parts = json.loads(told.to_json())["parts"]
        assert (parts["value"]["units"], "units" in parts["reward"]) == (7, False)


def test_a_manifest_says_as_what_rows_were_read_where_that_is_known():
    assert "rows" not in json.loads(MANIFEST.to_json())
    for rows in ("chat", "text"):
        told = dataclasses.replace(MANIFEST, rows=rows)
        assert json.loads(told.to_json())["rows"] == rows
        assert parse_manifest(told.to_json()) == told
    with pytest.raises(HeadError, match="rows: must be one of chat, text, got 'rhymes'"):
        parse_manifest(edited(rows="rhymes"))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "not valid JSON"),
        ("[]", "JSON object"),
        (edited(color="red"), "color: unknown key"),
        (edited(parts={}), "parts: must hold at least one"),
        (edited(parts={"charm": {}}), "parts.charm: unknown key"),
        (edited(parts={"value": 3}), "parts.value: must hold a JSON object"),
        (edited_part("advantage", form="dense"), "parts.advantage.form: must be one of tied, lowrank"),
        (edited_part("advantage", rank=0), "parts.advantage.rank"),
        (edited_part("advantage", rank=True), "parts.advantage.rank"),
        (edited_part("advantage", scale=0), "parts.advantage.scale"),
        (edited_part("advantage", bias=1), "parts.advantage.bias: unknown key"),
        (edited_part("value", activation="relu"), "parts.value.activation"),
        (edited_part("value", form="lstm"), "parts.value.form: must be one of linear, mlp, mean, gru"),
        (edited_part("value", form="gru", units=0), "parts.value.units"),
        (edited_part("value", form="mean", units="64"), "parts.value.units"),
        (edited(parts={"reward": {"form": "gru"}}), "parts.reward.form: must be one of linear, mlp"),
        (edited_part("value", bins=1), "parts.value.bins"),
        (edited_part("value", bins=True), "parts.value.bins"),
        (edited_part("value", bins=5, low=2.0, high=2.0), "parts.value.high: must be above low"),
        (edited_part("value", bins=5, low="0"), "parts.value.low"),
        (edited(base_model={"name": "x"}), "base_model.fingerprint: is missing"),
        (edited(hidden_size="32"), "hidden_size"),
        (edited(reward_std=0.0), "reward_std"),
        (edited(reward_mean=float("nan")), "reward_mean: must be a finite number"),
        (edited(metrics={"accuracy": "high"}), "metrics.accuracy"),
        (edited(format=2), "format: must be 1"),
        (edited(name="No Spaces"), "name: must be lower-case"),
    ],
)
def test_a_bad_manifest_is_refused_in_one_line_that_names_the_key(text: str, named: str):
    with pytest.raises(HeadError) as caught:
        parse_manifest(text)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["name", "parts", "hidden_size", "vocab_size", "base_model"])
def test_a_missing_key_is_named(key: str):
    data = json.loads(MANIFEST.to_json())
    del data[key]
    with pytest.raises(HeadError, match=f"{key}: is missing"):
        parse_manifest(json.dumps(data))


def test_the_file_is_named(tmp_path: Path):
    with pytest.raises(HeadError, match="is not a head folder"):
        load_manifest(tmp_path)
    (tmp_path / "head.json").write_text(edited(vocab_size=-1))
    with pytest.raises(HeadError, match=r"head\.json: vocab_size"):
        load_manifest(tmp_path)


def test_a_number_that_json_cannot_hold_is_refused_before_it_is_written():
    with pytest.raises(HeadError, match="reward_mean"):
        dataclasses.replace(MANIFEST, reward_mean=float("inf"))
