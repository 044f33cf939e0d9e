"""GGUF header: reads what a file says it holds, and refuses one that does not hold it.

The layout is llama.cpp's, docs/gguf.md: magic, version, two counts, metadata, a table of tensors, their data.
Every count is held against the bytes that are left before anything is read or allocated by it, so that the
readers of others, which trust it, meet whole files alone.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import gguf
from trimtab.guidance.errors import UserError

_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 4

Scalar = int | float | bool | str


@dataclass(frozen=True, slots=True)
class TensorInfo:
    name: str
    num_elements: int
    dtype: gguf.GGMLQuantizationType


@dataclass(frozen=True, slots=True)
class Header:
    """metadata: scalars and strings as they are, of an array its length. arrays: the names of those."""

    metadata: Mapping[str, Scalar]
    arrays: frozenset[str]
    tensors: tuple[TensorInfo, ...]

    @property
    def architecture(self) -> str:
        return str(self.metadata["general.architecture"])

    @property
    def num_elements(self) -> int:
        return sum(tensor.num_elements for tensor in self.tensors)

    def num_rows(self, tensor: str, width: int) -> int:
        """0 where there is no such tensor."""
        return next((one.num_elements // width for one in self.tensors if one.name == tensor), 0)


def read_header(path: Path) -> Header:
    """Raises UserError, one line, where it is no whole GGUF that can be expanded."""
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise UserError(f"{path} is not a GGUF file: it does not begin with the letters GGUF")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                header = _read(_Cursor(path, data))
    except OSError as error:
        raise UserError(f"--model {path} cannot be read: {error.strerror or error}") from error
    _check(path, header)
    return header


class _Cursor:
    """A place in the file; whatever goes beyond its end raises UserError."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, 4

    def number(self, kind: str) -> int | float | bool:
        start = self.skip(struct.calcsize(kind))
        value: int | float | bool = struct.unpack_from(f"<{kind}", self.data, start)[0]
        return value

    def count(self, kind: str = "Q", *, of: str, size: int = 1) -> int:
        """A number of things of at least `size` bytes each, all of which are still to come."""
        value = int(self.number(kind))
        if value * size > len(self.data) - self.at:
            raise self.cut(f"it says {value} {of}, more than its {len(self.data)} bytes can hold")
        return value

    def text(self) -> str:
        length = self.count(of="characters of a name")
        start = self.skip(length)
        return self.data[start : start + length].decode("utf-8", errors="replace")

    def skip(self, length: int) -> int:
        start, self.at = self.at, self.at + length
        if self.at > len(self.data):
            raise self.cut(f"its header does not end within its {len(self.data)} bytes")
        return start

    def cut(self, why: str) -> UserError:
        return UserError(f"{self.path} is a damaged GGUF, cut short or overwritten: {why}; copy it again")


def _read(cursor: _Cursor) -> Header:
    version = int(cursor.number("I"))
    if version & 0xFFFF == 0:
        raise UserError(f"{cursor.path} is a big-endian GGUF: convert it with gguf-convert-endian")
    if version not in _VERSIONS:
        raise UserError(f"{cursor.path} is of GGUF version {version}, not 2 or 3: convert it anew")
    num_tensors = cursor.count(of="tensors", size=24)
    num_values = cursor.count(of="fields", size=13)
    metadata: dict[str, Scalar] = {}
    arrays = set()
    for _ in range(num_values):
        name, kind = cursor.text(), int(cursor.number("I"))
        metadata[name] = _value(cursor, kind, name)
        if kind == _ARRAY:
            arrays.add(name)
    table = [_tensor(cursor) for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise cursor.cut(f"general.alignment is {alignment}")
    start, free = math.ceil(cursor.at / alignment) * alignment, 0
    for tensor, offset, num_bytes in sorted(table, key=lambda entry: entry[1]):
        end = start + offset + num_bytes
        if end > len(cursor.data):
            raise cursor.cut(f"tensor {tensor.name} ends at byte {end} of {len(cursor.data)}")
        if offset % alignment or offset < free:
            raise cursor.cut(f"tensor {tensor.name} begins at byte {offset} of the data, within another")
        free = offset + num_bytes
    return Header(metadata, frozenset(arrays), tuple(tensor for tensor, _, _ in table))


def _value(cursor: _Cursor, kind: int, name: str) -> Scalar:
    if kind in _SCALARS:
        return cursor.number(_SCALARS[kind])
    if kind == _STRING:
        return cursor.text()
    if kind != _ARRAY:
        raise cursor.cut(f"field {name} has the unknown type {kind}")
    inner = int(cursor.number("I"))
    if inner in _SCALARS:
        size = struct.calcsize(_SCALARS[inner])
        length = cursor.count(of=f"numbers in {name}", size=size)
        cursor.skip(length * size)
        return length
    if inner != _STRING:
        raise cursor.cut(f"field {name} is an array of the type {inner}")
    length = cursor.count(of=f"texts in {name}", size=8)
    for _ in range(length):
        cursor.skip(cursor.count(of=f"characters in {name}"))
    return length


def _tensor(cursor: _Cursor) -> tuple[TensorInfo, int, int]:
    """With its offset and its length in bytes."""
    name = cursor.text()
    num_dimensions = int(cursor.number("I"))
    if num_dimensions > _MAX_DIMENSIONS:
        raise cursor.cut(f"tensor {name} has {num_dimensions} dimensions")
    shape = [int(cursor.number("Q")) for _ in range(num_dimensions)]
    dtype, offset = int(cursor.number("I")), int(cursor.number("Q"))
    try:
        kind = gguf.GGMLQuantizationType(dtype)
    except ValueError:
        raise UserError(
            f"{cursor.path}: tensor {name} has the quantisation type {dtype}, unknown to the package "
            "gguf: update gguf, or take another quantisation"
        ) from None
    block, size = gguf.GGML_QUANT_SIZES[kind]
    if shape and shape[0] % block:
        raise cursor.cut(f"tensor {name} has rows of {shape[0]} in blocks of {block}")
    num_elements = math.prod(shape)
    return TensorInfo(name, num_elements, kind), offset, num_elements // block * size


def _check(path: Path, header: Header) -> None:
    """That the readers of others can be asked for it."""
    metadata = header.metadata
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise UserError(f"{path} names no architecture (general.architecture): convert the model anew")
    if metadata.get("split.count", 0) not in (0, 1):
        raise UserError(
            f"{path} is one of {metadata['split.count']} parts: join them with `llama-gguf-split --merge`"
        )
    if not header.tensors:
        raise UserError(f"{path} holds no tensors, perhaps a vocabulary alone: name a whole model")
    for field in ("tokenizer.ggml.model", "tokenizer.ggml.tokens"):
        if not metadata.get(field):
            raise UserError(f"{path} has no tokenizer ({field}): convert the model anew, with its tokenizer")
    _check_vocabulary(path, header)
    largest = max(tensor.num_elements for tensor in header.tensors)
    limits = {"block_count": len(header.tensors), "embedding_length": largest, "vocab_size": largest}
    limits |= {"feed_forward_length": largest, "attention.head_count": largest}
    for field, limit in limits.items():
        value = metadata.get(f"{architecture}.{field}", 0)
        if not isinstance(value, int) or not 0 <= value <= limit:
            raise UserError(
                f"{path} is damaged: {architecture}.{field} is {value}, more than its tensors can hold"
            )
    for kind in {tensor.dtype: tensor for tensor in reversed(header.tensors)}.values():
        _check_quantisation(path, kind)


def _check_vocabulary(path: Path, header: Header) -> None:
    metadata = header.metadata
    kind, num_tokens = metadata["tokenizer.ggml.model"], int(metadata["tokenizer.ggml.tokens"])
    wanted = {"gpt2": ("tokenizer.ggml.merges",), "llama": ("tokenizer.ggml.scores", "tokenizer.ggml.merges")}
    fields = wanted.get(str(kind), ())
    if fields and not any(metadata.get(field) for field in fields):
        raise UserError(
            f"{path} has a tokenizer without {fields[0]}: convert the model anew, with its tokenizer"
        )
    for name in ("bos", "eos"):  # others that are no token's are left out
        field = f"tokenizer.ggml.{name}_token_id"
        if not 0 <= int(metadata.get(field, 0)) < num_tokens:
            raise UserError(f"{path} is damaged: {field} is {metadata[field]}, of {num_tokens} tokens")
    width = metadata.get(f"{metadata['general.architecture']}.embedding_length", 0)
    if isinstance(width, int) and width > 0:
        rows = header.num_rows("token_embd.weight", width)
        if 0 < rows < num_tokens:
            raise UserError(
                f"{path} is damaged: it names {num_tokens} tokens, and its embedding has rows for {rows}"
            )


def _check_quantisation(path: Path, tensor: TensorInfo) -> None:
    _, size = gguf.GGML_QUANT_SIZES[tensor.dtype]
    try:
        gguf.dequantize(np.zeros(size, np.uint8), tensor.dtype)
    except NotImplementedError:
        raise UserError(
            f"{path}: tensor {tensor.name} is of type {tensor.dtype.name}, which the package gguf cannot "
            "expand: take another quantisation, such as Q8_0 or Q4_K_M"
        ) from None
