"""Head folders of anybody's making: whatever stands in them, they load or are refused in one line."""

from __future__ import annotations

import copy
import json
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from trimtab.guidance.errors import HeadError
from trimtab.guidance.heads.forms import Head
from trimtab.guidance.heads.manifest import AdvantagePart, BaseModel, Manifest, Parts, ScalarPart
from trimtab.guidance.heads.store import load_head, save_head

D, V = 6, 10
BASE = BaseModel("tiny", "0123456789abcdef", "tok", "tpl", "AAAA")
PARTS = Parts(
    AdvantagePart(rank=3, kl_per_token=0.02, optimum=2.0, value_per_advantage=0.1),
    ScalarPart("gru", width=4, units=3, bins=5, low=-1.0, high=1.0),
    ScalarPart("mlp", width=4),
)
MANIFEST = Manifest("kind", PARTS, D, V, BASE, rows="chat", metrics={"accuracy": 0.5})
NEVER = {  # by what they are
    "1e400": "1e400",
    "-1e400": "-1e400",
    "NaN": "NaN",
    "-Infinity": "-Infinity",
    "digits": "1" * 10_000,
    "controls": r'"a\u0000\n\u001b[31m\u202eb"',
    "surrogate": r'"\ud800"',
    "lists": "[" * 10_000 + "]" * 10_000,
    "objects": '{"a":' * 10_000 + "1" + "}" * 10_000,
    "long": '"' + "x" * 100_000 + '"',
    "true": "true",
    "list": "[1, 2]",
    "key": r'{"a\n\u001b[31m": 1, "b": {}}',
}
SOMETIMES = {
    "null": "null",
    "-1": "-1",
    "0": "0",
    "0.5": "0.5",
    "1e-320": "1e-320",
    "2**31": "2147483648",
    "2**64": "18446744073709551616",
    "empty": '""',
    "{}": "{}",
}
SIZES = ("rank", "width", "units", "bins", "hidden_size", "vocab_size", "format")


def paths(tree: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in tree.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from paths(value, (*above, key))


KEYS = list(paths(json.loads(MANIFEST.to_json())))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    head = Head(PARTS, D, V)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    folder = tmp_path_factory.mktemp("heads") / "kind"
    save_head(folder, head, MANIFEST)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def refusal(folder: Path, dtype: torch.dtype = torch.float16) -> str | None:
    """In one short line that can be shown; None where the head loads."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load_head(folder, dtype=dtype)
    except HeadError as error:
        told = str(error)
        assert told.isprintable() and len(told) < 1000 + len(str(folder)), told[:2000]
        assert str(folder) in told
        return told
    return None


def write(folder: Path, path: tuple[str, ...], text: str) -> None:
    tree = copy.deepcopy(json.loads(MANIFEST.to_json()))
    node = tree
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = "HERE"
    (folder / "head.json").write_text(json.dumps(tree).replace('"HERE"', text))


@pytest.mark.parametrize("path", KEYS, ids=".".join)
def test_whatever_stands_under_a_key_is_refused_in_one_line_that_names_file_and_key(folder, path):
    for name, text in NEVER.items():
        write(folder, path, text)
        told = refusal(folder)
        if name == "key" and path == ("metrics",):
            assert told is not None and r"metrics.a\n\x1b[31m" not in told  # its number is one; b is refused
        assert told is not None, (path, name)
        assert path[-1] in told or f"{path[0]}." in told, (name, told)
        assert "head.json" in told
    for name, text in SOMETIMES.items():
        write(folder, path, text)
        told = refusal(folder)
        assert told is not None or path[-1] not in SIZES or name == "0.5", (path, name)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"name": "kind", "name": "kind"}', "name: is given twice"),
        ('{"parts": {"value": {"a\\n": 1, "a\\n": 2}}}', r"a\\n: is given twice"),
        ("", "not valid JSON"),
        ("\ufeff{}", "not valid JSON"),
        ("\x00", "not valid JSON"),
        ('{"color\\n\\u202e": 1}', r"color\\n\\u202e: unknown key"),
        ('"' + "x" * 2_000_000 + '"', "more than 1048576 bytes"),
        ("[" * 100_000, "the file: nested more than 16 deep"),
        ('"' * 99_999, "not valid JSON"),
        ('"\\' * 99_999, "not valid JSON"),
    ],
)
def test_a_file_that_is_no_manifest_is_refused_in_one_line(folder: Path, text: str, named: str):
    (folder / "head.json").write_text(text)
    assert named.replace(r"\\", "\\") in (refusal(folder) or "")
    (folder / "head.json").write_bytes(b"\xff\xfe" + text[:99].encode())
    assert "UTF-8" in (refusal(folder) or "")
    (folder / "head.json").unlink()
    (folder / "head.json").mkdir()
    assert "cannot be read" in (refusal(folder) or "")


TENSORS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "int64": (lambda t: t.long(), "holds int64"),
    "bool": (lambda t: t > 0, "holds bool"),
    "complex": (lambda t: t + 0j, "holds complex64"),
    "float8": (lambda t: t.to(torch.float8_e4m3fn), "holds float8_e4m3fn"),
    "longer": (lambda t: t.new_zeros(*t.shape[:-1], t.shape[-1] + 1) if t.dim() else t.new_zeros(1), "shape"),
    "deeper": (lambda t: t[None], "shape"),
    "flat": (lambda t: t.new_zeros(()) if t.dim() else t.new_zeros(2), "shape"),
    "none": (lambda t: t.new_zeros(0), "shape"),
    "nan": (lambda t: t.fill_(float("nan")), "not finite"),
    "inf": (lambda t: t.fill_(float("-inf")), "not finite"),
    "float64's": (lambda t: t.double().fill_(1e300), "cannot"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_a_tensor_that_cannot_be_used_is_refused_by_name(folder: Path, case: str):
    change, named = TENSORS[case]
    path = folder / "head.safetensors"
    tensors = load(path.read_bytes())
    for name in tensors:
        path.write_bytes(save(tensors | {name: change(tensors[name].clone())}))
        told = refusal(folder)
        assert told is not None and f"head.safetensors: {name} " in told and named in told, (name, told)
    path.write_bytes(save({n: t.double() for n, t in tensors.items()}))
    assert refusal(folder) is None, "floats of another width are converted"


def test_numbers_are_finite_in_the_dtype_that_they_are_used_in(folder: Path):
    path = folder / "head.safetensors"
    tensors = load(path.read_bytes())
    path.write_bytes(save(tensors | {"advantage.up": torch.full((V, 3), 1e5)}))
    assert "advantage.up holds numbers that float16 cannot" in (refusal(folder) or "")
    assert refusal(folder, torch.bfloat16) is None
    path.write_bytes(save(tensors | {"reward.weight": torch.full((4,), 1e5)}))
    assert refusal(folder) is None, "rewards stay float32"
    write(folder, ("reward_std",), "1e-30")
    path.write_bytes(save(tensors | {"reward.weight": torch.full((4,), 1e30)}))
    assert "reward.weight is too large for head.json's reward_std" in (refusal(folder) or "")


def headed(header: bytes, body: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + body


FILES = {
    "empty": b"",
    "cut in its length": b"\x01\x02",
    "no header": headed(b""),
    "length beyond the file": headed(b"{}", length=2**40),
    "length beyond all": headed(b"{}", length=2**64 - 1),
    "no JSON": headed(b"\x1b[31m\n" * 9),
    "no object": headed(b"[]"),
    "deep": headed(b"[" * 100_000),
    "no dtype": headed(b'{"advantage.up":{"shape":[1],"data_offsets":[0,4]}}', b"\0" * 4),
    "another dtype": headed(b'{"a\\n":{"dtype":"F7","shape":[1],"data_offsets":[0,4]}}', b"\0" * 4),
    "negative": headed(b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', b"\0" * 4),
    "offsets beyond": headed(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4000]}}', b"\0" * 4),
    "offsets backwards": headed(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}', b"\0" * 4),
    "a shape of its own": headed(b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}', b"\0" * 4),
    "an overflowing shape": headed(
        b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}'
    ),
    "a name with controls": headed(
        b'{"a\\n\\u001b\\u202e":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"\0" * 4
    ),
    "a long name": headed(
        b'{"' + b"x" * 99_999 + b'":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"\0" * 4
    ),
    "four bits": headed(b'{"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}', b"\0"),
    "scales": headed(b'{"a":{"dtype":"F8_E8M0","shape":[1],"data_offsets":[0,1]}}', b"\0"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_of_weights_that_lies_is_refused_in_one_line(folder: Path, case: str):
    (folder / "head.safetensors").write_bytes(FILES[case])
    assert "head.safetensors" in (refusal(folder) or "")


def test_a_file_of_weights_that_is_cut_anywhere_is_refused(folder: Path):
    path = folder / "head.safetensors"
    whole = path.read_bytes()
    for length in range(0, len(whole), max(1, len(whole) // 40)):
        path.write_bytes(whole[:length])
        assert "head.safetensors" in (refusal(folder) or ""), length
    path.write_bytes(whole + b"\0")
    assert "head.safetensors" in (refusal(folder) or "")
