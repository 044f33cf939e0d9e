"""Our own server as the judge of `trimtab label`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tiny_models import SIZES, byte_tokenizer, save_random_model
from transformers import AutoModelForCausalLM, LlamaConfig

from trimtab.server.api.app import create_app
from trimtab.server.api.config import ApiConfig
from trimtab.server.cli import main
from trimtab.server.engine.async_engine import AsyncEngine
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.engine import Engine


def save_decided_judge(folder: Path) -> Path:
    """A random model that says A or B and nothing else, by one direction of h, and which by another.
    The questions end alike, so it says nearly the same to all of them, whichever reply comes first."""
    save_random_model(LlamaConfig(**{**SIZES, "max_position_embeddings": 1024}), folder)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}>"
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    shared, between = torch.randn(2, SIZES["hidden_size"], generator=generator)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        for letter, sign in (("A", 1), ("B", -1)):
            row = tokenizer.convert_tokens_to_ids(letter)
            model.lm_head.weight[row] = -5 * shared + sign * 0.05 * between
    model.save_pretrained(folder)
    return folder


def test_a_random_model_of_ours_is_caught_liking_one_position(tmp_path: Path, serve: Callable[[Any], str]):
    words = ("yes", "no", "perhaps", "never", "always")
    rows = [{"prompt": f"p{i}", "completion": word} for i in range(3) for word in words]
    (tmp_path / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "constitution.yaml").write_text("name: kind\nprinciples: [{text: Be kind.}]")
    folder = save_decided_judge(tmp_path / "tiny")
    engine = AsyncEngine(lambda: Engine.from_config(EngineConfig(folder, kv_cache_gib=0.05)))
    engine.start()
    engine.wait_until_loaded()
    flags = ["--constitution", str(tmp_path / "constitution.yaml"), "--out", str(tmp_path / "out.parquet")]
    try:
        url = serve(create_app(engine, engine.engine.policy.tokenizer, ApiConfig()))
        flags += ["--rollouts", str(tmp_path / "rollouts.jsonl"), "--judge-url", f"{url}/v1"]
        assert main(["label", *flags]) == 1
    finally:
        engine.stop()
    report = json.loads((tmp_path / "out.report.json").read_text())
    assert (report["num_questions"], report["failures"], report["num_unjudged"]) == (60, {}, 0)
    assert (report["disagreement"], report["num_rows"]) == (1.0, 0)
    assert 0 < report["first_position"] < 1
    answers = [json.loads(line) for line in (tmp_path / "out.answers.jsonl").read_text().splitlines()]
    assert len({tuple(map(tuple, answer["first"][:2])) for answer in answers}) == 60  # each has read its own
    assert {answer["first"][0][0] for answer in answers} <= {"A", "B"}
