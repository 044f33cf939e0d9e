from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_models import SIZES, save_random_model
from transformers import LlamaConfig

from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.policy import ServedPolicy

# Triton reads TRITON_INTERPRET when it is first imported, so these run in a process of their own, started by
# test_interpreter.py.
collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]


@pytest.fixture(autouse=True, scope="session")
def release_weights() -> Iterator[Callable[[ServedPolicy], None]]:
    """What replies are held against is the model's own forward, for which an engine has no use any more: here
    it stays. What is given would release it."""
    release = ServedPolicy.release_weights
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ServedPolicy, "release_weights", lambda policy: None)
        yield release


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(LlamaConfig(**SIZES), tmp_path_factory.mktemp("llama"))


@pytest.fixture
def make_engine(llama_folder: Path) -> Callable[..., Engine]:
    def make(**overrides: object) -> Engine:
        options: dict[str, object] = {"model": llama_folder, "block_size": 8, "max_num_seqs": 8}
        return Engine.from_config(EngineConfig(**{**options, **overrides}))  # type: ignore[arg-type]

    return make
