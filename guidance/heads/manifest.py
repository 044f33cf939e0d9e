"""Manifest of a head, head.json: what it is, what it was trained on and in which units it speaks."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from trimtab.guidance.errors import HeadError, printable
from trimtab.guidance.json_file import parse_json, read_json, shown, shown_key

FORMAT = 1
MANIFEST_FILE = "head.json"
TENSORS_FILE = "head.safetensors"
AdvantageForm = Literal["tied", "lowrank"]
ScalarForm = Literal["linear", "mlp"]
ValueForm = Literal["linear", "mlp", "mean", "gru"]
Activation = Literal["identity", "silu"]
ADVANTAGE_FORMS = get_args(AdvantageForm)
SCALAR_FORMS = get_args(ScalarForm)
VALUE_FORMS = get_args(ValueForm)
REMEMBERING = ("mean", "gru")
ACTIVATIONS = get_args(Activation)
PARTS = ("advantage", "value", "reward")
ROWS = ("chat", "text")
MAX_NUMBER = 1e30
MAX_SIZE = 2**31 - 1
MAX_TEXT = 2000
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


def _check(ok: bool, key: str, fix: str) -> None:
    if not ok:
        raise HeadError(f"{key}: {fix}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_NUMBER


def _check_number(value: object, key: str, *, positive: bool = False) -> None:
    """Within what float32, in which it is used, can hold."""
    is_fit = _is_number(value) and (not positive or value >= 1 / MAX_NUMBER)  # type: ignore[operator]
    kind = "a finite number above 0" if positive else "a finite number"
    bounds = f"{1 / MAX_NUMBER:g}…{MAX_NUMBER:g}" if positive else f"-{MAX_NUMBER:g}…{MAX_NUMBER:g}"
    _check(is_fit, key, f"must be {kind}, {bounds}, got {shown(value)}")


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= MAX_SIZE


def _check_size(value: object, key: str) -> None:
    _check(
        _is_count(value, 1), key, f"must be a whole number of at least 1, and below 2³¹, got {shown(value)}"
    )


def _check_bins(value: object) -> None:
    is_count = (value == 0 and _is_count(value, 0)) or _is_count(value, 2)
    fix = "must be 0, for none, or a whole number of at least 2, and below 2³¹"
    _check(is_count, "bins", f"{fix}, got {shown(value)}")


def _check_text(value: object, key: str) -> None:
    is_text = isinstance(value, str) and len(value) <= MAX_TEXT and value.isprintable()
    _check(
        is_text,
        key,
        f"must be a string of printable characters, at most {MAX_TEXT}, got {shown(value)}",
    )


def as_text(text: str) -> str:
    """What a manifest may hold of a text from elsewhere."""
    return printable(text)[:MAX_TEXT]


def _check_choice(value: object, key: str, choices: tuple[str, ...]) -> None:
    _check(value in choices, key, f"must be one of {', '.join(choices)}, got {shown(value)}")


def check_name(name: object) -> None:
    """Raises HeadError unless `name` may name a head."""
    is_name = isinstance(name, str) and _NAME.fullmatch(name) is not None
    _check(is_name, "name", f"must be lower-case letters, digits, _ . or -, got {shown(name)}")


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
        fix = f"must be 0 or more, got {shown(self.kl_per_token)}"
        _check(self.kl_per_token is None or self.kl_per_token >= 0, "kl_per_token", fix)


@dataclass(frozen=True, slots=True)
class ScalarPart:
    """V(s) of a prefix, or the reward of a finished reply: it measures.

    form: `mean` and `gru` are mlps that also read a memory of the reply; only a value can be one.
    width: hidden units of an mlp. bins: above 0, the scalar is the mean of a distribution over so many bins,
    evenly from low to high. units: numbers that are remembered.
    """

    form: str = "linear"
    width: int = 256
    activation: str = "silu"
    loss: str = ""
    bins: int = 0
    low: float = 0.0
    high: float = 0.0
    units: int = 64

    def __post_init__(self) -> None:
        _check_choice(self.form, "form", VALUE_FORMS)
        _check_size(self.width, "width")
        _check_size(self.units, "units")
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

    def __post_init__(self) -> None:
        if isinstance(self.reward, ScalarPart):
            _check_choice(self.reward.form, "reward.form", SCALAR_FORMS)


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
        is_ours = _is_count(self.format, 1) and self.format == FORMAT
        _check(is_ours, "format", f"must be {FORMAT}, got {shown(self.format)}")
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
        _check(isinstance(self.metrics, Mapping), "metrics", f"must be an object, got {shown(self.metrics)}")
        for key, value in self.metrics.items():
            _check_number(value, f"metrics.{shown_key(key)}")

    def to_json(self) -> str:
        data = dataclasses.asdict(self)
        data["parts"] = {name: part for name, part in data["parts"].items() if part is not None}
        for part in data["parts"].values():
            for key in ("kl_per_token", "optimum"):  # older files have none
                if key in part and part[key] is None:
                    del part[key]
            if part.get("bins") == 0:  # a plain scalar's file is as it was before there were bins
                del part["bins"], part["low"], part["high"]
            if part["form"] not in REMEMBERING:
                part.pop("units", None)
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
        _check(key in known, f"{prefix}{shown_key(key)}", f"unknown key, known are {', '.join(known)}")
    for key, spec in known.items():
        needed = spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
        _check(key in data or not needed, f"{prefix}{key}", "is missing")
    try:
        return cls(**data)
    except HeadError as error:
        raise HeadError(f"{prefix}{error}") from None


def parse_manifest(text: str) -> Manifest:
    """The manifest that the JSON text holds.

    Raises:
        HeadError: not JSON, an unknown or missing key, a wrong type or value. One line; it names the key.
    """
    try:
        data = parse_json(text)
    except ValueError as error:
        raise HeadError(str(error)) from None
    return _manifest_of(data)


def _manifest_of(data: Any) -> Manifest:
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
        return _manifest_of(read_json(path))
    except FileNotFoundError:
        raise HeadError(
            f"{folder} is not a head folder: it has no {MANIFEST_FILE} (train one with `trimtab train`)"
        ) from None
    except OSError as error:
        raise HeadError(f"{path}: cannot be read ({error})") from None
    except ValueError as error:  # a HeadError among them
        raise HeadError(f"{path}: {error}") from None
