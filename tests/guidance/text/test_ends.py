from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from text_tokenizers import cut_bytes
from tiny_models import SIZES, save_random_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig

from trimtab.guidance.policy import load_policy
from trimtab.guidance.text.ends import _warn, end_of_reply, reply_ends

TURN = "{% for m in messages %}{{ m.content }}<turn>{% endfor %}"
EOS_ID, TURN_ID = cut_bytes().convert_tokens_to_ids(["<eos>", "<turn>"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """config.json names 70 and generation_config.json 80 and 90."""
    tokenizer = cut_bytes()
    sizes = {**SIZES, "vocab_size": len(tokenizer), "eos_token_id": 70}
    save_random_model(LlamaConfig(**sizes), tmp_path)
    GenerationConfig(eos_token_id=[80, 90]).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def with_template(folder: Path, template: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)


@pytest.fixture(autouse=True)
def _nothing_was_told_before() -> None:
    _warn.cache_clear()


def ends(folder: Path) -> tuple[int, ...]:
    return reply_ends(AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))


def drop(path: Path, name: str) -> None:
    stated = json.loads(path.read_text())
    del stated[name]
    path.write_text(json.dumps(stated))


def test_the_ends_are_what_all_four_name(folder: Path):
    assert ends(folder) == (70, 80, 90, EOS_ID)
    with_template(folder, TURN)
    assert ends(folder) == (70, 80, 90, EOS_ID, TURN_ID)
    assert load_policy(folder, device="cpu").end_ids == ends(folder)


def test_what_is_usual_for_an_architecture_is_no_end_where_a_file_names_one(folder: Path):
    assert LlamaConfig().eos_token_id == 2
    drop(folder / "config.json", "eos_token_id")
    assert ends(folder) == (80, 90, EOS_ID)
    stated = {"_from_model_config": True, "eos_token_id": [2, 90]}
    (folder / "generation_config.json").write_text(json.dumps(stated))
    assert ends(folder) == (90, EOS_ID)
    (folder / "generation_config.json").unlink()
    assert ends(folder) == (EOS_ID,)


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('never') }}", "{{ 1 / 0 }}", "{% if %}", "{{ strftime_now(3) }}"]
)
def test_a_template_that_fails_at_every_probe_costs_a_warning(
    folder: Path, template: str, caplog: pytest.LogCaptureFixture
):
    with_template(folder, template)
    with caplog.at_level(logging.WARNING):
        assert ends(folder) == (70, 80, 90, EOS_ID)
    assert "template" in caplog.text
    assert end_of_reply(AutoTokenizer.from_pretrained(folder), is_chat=True) == EOS_ID


@pytest.mark.parametrize("template", [None, TURN, "{% for m in messages %}<turn>{{ m.content }}{% endfor %}"])
@pytest.mark.parametrize("is_chat", [False, True])
def test_the_end_that_is_learned_from_is_one_that_ends_replies(
    folder: Path, template: str | None, is_chat: bool
):
    if template is not None:
        with_template(folder, template)
    assert end_of_reply(AutoTokenizer.from_pretrained(folder), is_chat=is_chat) in ends(folder)
