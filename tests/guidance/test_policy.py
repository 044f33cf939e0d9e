from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import Gemma2Config, GPT2Config, GraniteConfig, PhiConfig
from transformers.models.auto import AutoModelForCausalLM

from trimtab.guidance.errors import PolicyError
from trimtab.guidance.policy import as_policy, load_policy, output_embedding_input

SIZES = {"vocab_size": 27, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
SPECIAL = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
LLAMA_LIKE = {**SIZES, **SPECIAL, "intermediate_size": 64, "num_key_value_heads": 2}
TAILS = {
    "softcap": Gemma2Config(**LLAMA_LIKE, head_dim=8, final_logit_softcapping=30.0),
    "scale": GraniteConfig(**LLAMA_LIKE, logits_scaling=4.0),
    "bias": PhiConfig(**SIZES, **SPECIAL, intermediate_size=64),
    "plain": GPT2Config(vocab_size=27, n_embd=32, n_layer=1, n_head=4, bos_token_id=2, eos_token_id=3),
}


@pytest.mark.parametrize("tail", TAILS)
def test_logits_of_h_are_the_models_own_whatever_its_tail(tail: str, build_tokenizer):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(TAILS[tail]).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    policy = as_policy(model, build_tokenizer(), name=tail)
    assert policy.has_linear_tail == (tail == "plain")
    with torch.no_grad(), output_embedding_input(model, lambda h: h) as seen:
        want = model(input_ids=torch.tensor([[2, 7, 9, 11]])).logits[0]
    torch.testing.assert_close(policy.logits(seen[0][0]), want)


def test_a_loaded_policy_is_frozen_and_named(policy_folder: Path):
    policy = load_policy(policy_folder)
    assert not any(parameter.requires_grad for parameter in policy.model.parameters())
    assert policy.identity.base_model.name == "tiny"
    assert (policy.identity.hidden_size, policy.identity.vocab_size) == (32, 27)
    assert policy.has_linear_tail


def test_no_code_of_a_models_is_run(policy_folder: Path, tmp_path: Path):
    folder = shutil.copytree(policy_folder, tmp_path / "evil")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(PolicyError, match="evil") as caught:
        load_policy(folder)
    assert str(caught.value).isprintable()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
@pytest.mark.parametrize("text", ["", "[]", '{"a": ' + "[" * 100_000, '{"model_type": "a\\n\\u001b[31m"}'])
def test_files_of_a_model_that_hold_anything_are_refused_in_one_line(
    policy_folder: Path, tmp_path: Path, file: str, text: str
):
    folder = shutil.copytree(policy_folder, tmp_path / "odd")
    (folder / file).write_text(text)
    with pytest.raises(PolicyError) as caught:
        load_policy(folder)
    assert str(caught.value).isprintable() and str(folder) in str(caught.value)


def test_a_model_that_is_not_there_is_refused_in_one_line(tmp_path: Path):
    with pytest.raises(PolicyError, match="is not a folder here") as caught:
        load_policy(tmp_path / "nowhere")
    assert "nowhere" in str(caught.value)
    assert "\n" not in str(caught.value)
