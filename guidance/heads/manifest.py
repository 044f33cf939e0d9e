"""Manifest of a head, head.json: what it is, what it was trained on and in which units it speaks."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from trimtab.guidance.errors import HeadError

FORMAT = 1
MANIFEST_FILE = "head.json"
TENSORS_FILE = "head.safetensors"
AdvantageForm = Literal["tied", "lowrank"]
ScalarForm = Literal["linear", "mlp"]
Activation = Literal["identity", "silu"]
ADVANTAGE_FORMS = get_args(AdvantageForm)
SCALAR_FORMS = get_args(ScalarForm)
ACTIVATIONS = get_args(Activation)
PARTS = ("advantage", "value", "reward")
ROWS = ("chat", "text")
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


def _check(ok: bool, key: str, fix: str) -> None:
    if not ok:
        raise HeadError(f"{key}: {fix}")


def _check_number(value: object, key: str, *, positive: bool = False) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    kind = "a finite number above 0" if positive else "a finite number"
    _check(is_number and (not positive or value > 0), key, f"must be {kind}, got {value!r}")  # type: ignore[operator]


def _check_size(value: object, key: str) -> None:
    is_size = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    _check(is_size, key, f"must be a whole number of at least 1, got {value!r}")


def _check_bins(value: object) -> None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and (value == 0 or value >= 2)
    _check(is_count, "bins", f"must be 0, for none, or a whole number of at least 2, got {value!r}")


def _check_text(value: object, key: str) -> None:
    _check(isinstance(value, str), key, f"must be a string, got {value!r}")


def _check_choice(value: object, key: str, choices: tuple[str, ...]) -> None:
    _check(value in choices, key, f"must be one of {', '.join(choices)}, got {value!r}")


def check_name(name: object) -> None:
    """Raises HeadError unless `name` may name a head."""
    is_name = isinstance(name, str) and _NAME.fullmatch(name) is not None
    _check(is_name, "name", f"must be lower-case letters, digits, _ . or -, got {name!r}")


@dataclass(frozen=True, slots=True)
class AdvantagePart:
    """A(s, ·), one number for every next token: it steers.

    loss, tau: what trained it, and its KL temperature.
    scale: multiplies the advantage, so that a unit of strength costs the same for every head; see
    trimtab.guidance.training.scale.
    kl_per_token: nats that strength 1 spends at a held-out position, on average.
    optimum: of a loss that has one, the strength at which it was trained.
    value_per_advantage: standard units that V gains per unit of scaled, centred advantage of the drawn
    token (held-out slope). The last three are None where they were not measured.
    """

    form: str = "lowrank"
    rank: int = 64
    activation: str = "silu"
    loss: str = "dpo"
    tau: float = 0.1
    scale: float = 1.0
    kl_per_token: float | None = None
    optimum: float | None = None
    value_per_advantage: float | None = None

    def __post_init__(self) -> None:
        _check_choice(self.form, "form", ADVANTAGE_FORMS)
        _check_size(self.rank, "rank")
        _check_choice(self.activation, "activation", ACTIVATIONS)
        _check_text(self.loss, "loss")
        _check_number(self.tau, "tau", positive=True)
        _check_number(self.scale, "scale", positive=True)
        for key in ("kl_per_token", "optimum", "value_per_advantage"):
            if getattr(self, key) is not None:
                _check_number(getattr(self, key), key)


@dataclass(frozen=True, slots=True)
class ScalarPart:
    """V(s) of a prefix, or the reward of a finished reply: it measures.

    width: hidden units of an mlp. bins: above 0, the scalar is the mean of a distribution over so many bins,
    evenly from low to high.
    """

    form: str = "linear"
    width: int = 256
    activation: str = "silu"
    loss: str = ""
    bins: int = 0
    low: float = 0.0
    high: float = 0.0

    def __post_init__(self) -> None:
        _check_choice(self.form, "form", SCALAR_FORMS)
        _check_size(self.width, "width")
        _check_choice(self.activation, "activation", ACTIVATIONS)
        _check_text(self.loss, "loss")
        _check_bins(self.bins)
        _check_number(self.low, "low")
        _check_number(self.high, "high")
        _check(not self.bins or self.low < self.high, "high", f"must be above low, {self.low}")


@dataclass(frozen=True, slots=True)
class Parts:
    advantage: AdvantagePart | None = None
    value: ScalarPart | None = None
    reward: ScalarPart | None = None


@dataclass(frozen=True, slots=True)
class BaseModel:
    """The policy a head was trained on; see trimtab.guidance.heads.fingerprint. sample: of its weights, by
    which a refusal says how far another's are; empty in older files."""

    name: str
    fingerprint: str
    tokenizer_hash: str
    template_hash: str
    sample: str = ""

    def __post_init__(self) -> None:
        for key in ("name", "fingerprint", "tokenizer_hash", "template_hash", "sample"):
            _check_text(getattr(self, key), key)


@dataclass(frozen=True, slots=True)
class Manifest:
    """head.json. reward_mean, reward_std: of the raw reward over the policy's own replies; a reported
    reward or value is (raw - reward_mean) / reward_std. rows: whether its prompts were chats or texts; None
    where that was not recorded."""

    name: str
    parts: Parts
    hidden_size: int
    vocab_size: int
    base_model: BaseModel
    reward_mean: float = 0.0
    reward_std: float = 1.0
    trained_on: str = ""
    rows: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    format: int = FORMAT

    def __post_init__(self) -> None:
        _check(self.format == FORMAT, "format", f"must be {FORMAT}, got {self.format!r}")
        check_name(self.name)
        has_part = any(getattr(self.parts, part) is not None for part in PARTS)
        _check(has_part, "parts", f"must hold at least one of {', '.join(PARTS)}")
        _check_size(self.hidden_size, "hidden_size")
        _check_size(self.vocab_size, "vocab_size")
        _check_number(self.reward_mean, "reward_mean")
        _check_number(self.reward_std, "reward_std", positive=True)
        _check_text(self.trained_on, "trained_on")
        if self.rows is not None:
            _check_choice(self.rows, "rows", ROWS)
        _check(isinstance(self.metrics, Mapping), "metrics", f"must be an object, got {self.metrics!r}")
        for key, value in self.metrics.items():
            _check_number(value, f"metrics.{key}")

    def to_json(self) -> str:
        data = dataclasses.asdict(self)
        data["parts"] = {name: part for name, part in data["parts"].items() if part is not None}
        for part in data["parts"].values():
            for key in ("kl_per_token", "optimum"):  # older files have none
                if key in part and part[key] is None:
                    del part[key]
            if part.get("bins") == 0:  # a plain scalar's file is as it was before there were bins
                del part["bins"], part["low"], part["high"]
        if self.rows is None:
            del data["rows"]
        if not self.base_model.sample:
            del data["base_model"]["sample"]
        return json.dumps(data, indent=2, allow_nan=False) + "\n"


def _build(cls: type[Any], data: object, where: str) -> Any:
    """cls(**data), where data is a JSON object with exactly the keys that cls knows and needs."""
    _check(isinstance(data, dict), where or "the file", "must hold a JSON object")
    assert isinstance(data, dict)
    known = {f.name: f for f in dataclasses.fields(cls)}
    prefix = f"{where}." if where else ""
    for key in data:
        _check(key in known, f"{prefix}{key}", f"unknown key, known are {', '.join(known)}")
    for key, spec in known.items():
        needed = spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
        _check(key in data or not needed, f"{prefix}{key}", "is missing")
    try:
        return cls(**data)
    except HeadError as error:
        raise HeadError(f"{prefix}{error}") from None


def _refuse_constant(token: str) -> float:
    raise ValueError(f"{token} is not a number in JSON")


def parse_manifest(text: str) -> Manifest:
    """The manifest that the JSON text holds.

    Raises:
        HeadError: not JSON, an unknown or missing key, a wrong type or value. One line; it names the key.
    """
    try:
        data = json.loads(text, parse_constant=_refuse_constant)
    except ValueError as error:
        raise HeadError(f"not valid JSON ({error})") from None
    _check(isinstance(data, dict), "the file", "must hold a JSON object")
    parts = data.get("parts")
    if isinstance(parts, dict):
        kinds = {"advantage": AdvantagePart, "value": ScalarPart, "reward": ScalarPart}
        built = {
            key: _build(kinds[key], part, f"parts.{key}") if key in kinds else part
            for key, part in parts.items()
        }
        data["parts"] = built
    if "parts" in data:
        data["parts"] = _build(Parts, data["parts"], "parts")
    if "base_model" in data:
        data["base_model"] = _build(BaseModel, data["base_model"], "base_model")
    manifest: Manifest = _build(Manifest, data, "")
    return manifest


def load_manifest(folder: Path) -> Manifest:
    """Reads `folder/head.json`.

    Raises:
        HeadError: absent or invalid; one line that names the file, the key and the fix.
    """
    path = folder / MANIFEST_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise HeadError(
            f"{folder} is not a head folder: it has no {MANIFEST_FILE} (train one with `trimtab train`)"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise HeadError(f"{path}: cannot be read ({error})") from None
    try:
        return parse_manifest(text)
    except HeadError as error:
        raise HeadError(f"{path}: {error}") from None
