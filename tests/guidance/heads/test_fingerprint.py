from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trimtab.guidance.heads.fingerprint import (
    fingerprint,
    identify,
    template_hash,
    tokenizer_hash,
    weight_difference,
    weight_sample,
)


def test_a_bfloat16_copy_keeps_the_fingerprint(build_model):
    model = build_model()
    assert fingerprint(copy.deepcopy(model).to(torch.bfloat16)) == fingerprint(model)


def test_a_reloaded_policy_keeps_the_identity(build_model, build_tokenizer, policy_folder):
    reloaded = AutoModelForCausalLM.from_pretrained(policy_folder)
    tokenizer = AutoTokenizer.from_pretrained(policy_folder)
    assert identify(reloaded, tokenizer, "tiny") == identify(build_model(), build_tokenizer(), "tiny")


def test_another_backbone_changes_the_fingerprint(build_model):
    prints = {
        fingerprint(build_model(seed=0)),
        fingerprint(build_model(seed=1)),
        fingerprint(build_model(tie_word_embeddings=True)),
        fingerprint(build_model(num_hidden_layers=3)),
    }
    assert len(prints) == 4


def test_changing_one_column_of_one_matrix_changes_the_fingerprint(build_model):
    model = build_model()
    before = fingerprint(model)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[:, 7] += 1
    assert fingerprint(model) != before


@pytest.mark.parametrize("change", ["padding", "truncation"])
def test_how_a_tokenizer_was_last_called_does_not_change_its_hash(build_tokenizer, change: str):
    tokenizer = build_tokenizer()
    before = tokenizer_hash(tokenizer)
    tokenizer(["a b c"], **{change: "max_length"} if change == "padding" else {change: True}, max_length=5)
    assert tokenizer_hash(tokenizer) == before


def test_tokenizer_and_template_hashes_follow_vocabulary_and_template(build_tokenizer):
    tokenizer = build_tokenizer()
    wider = build_tokenizer()
    wider.add_tokens(["zebra"])
    assert tokenizer_hash(wider) != tokenizer_hash(tokenizer)
    other = build_tokenizer("{{ messages[0]['content'] }}")
    assert template_hash(other) != template_hash(tokenizer) != ""
    assert template_hash(build_tokenizer(None)) == ""


def test_a_sample_of_the_weights_says_how_far_others_are(build_model):
    model = build_model()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter) * parameter.square().mean().sqrt() * 0.1)
    sample = weight_sample(model)
    assert len(sample) < 2048
    assert weight_difference(sample, weight_sample(other)) == pytest.approx(0.1, rel=0.25)
    assert weight_difference(sample, weight_sample(copy.deepcopy(model).to(torch.bfloat16))) == 0.0


@pytest.mark.parametrize("sample", ["", "AAAA", "no base64 at all!", "AAA="])
def test_samples_that_are_missing_or_odd_say_nothing(build_model, sample: str):
    assert weight_difference(sample, weight_sample(build_model())) is None
