"""Reward parts as classification models: the same number, read at the same place."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    CohereConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from trimtab.guidance.errors import HeadError, PolicyError
from trimtab.guidance.features.source import FeatureCache
from trimtab.guidance.heads.forms import Head
from trimtab.guidance.heads.manifest import Manifest, Parts, ScalarPart
from trimtab.guidance.policy import Policy, as_policy
from trimtab.guidance.publish.classifier import (
    as_classifier,
    as_head,
    check_exportable,
    check_same,
    read_classifier,
    save_classifier,
    set_dtype,
    set_pad_token,
)
from trimtab.guidance.text.encoding import EncodedReply, ReplyEncoder
from trimtab.guidance.training.held_out import score_ends

SIZES = {"vocab_size": 27, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SPECIAL = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SIZES, **SPECIAL, intermediate_size=48, initializer_range=0.2),
    "qwen2": Qwen2Config(
        **SIZES, **SPECIAL, num_key_value_heads=2, intermediate_size=48, tie_word_embeddings=True
    ),
    "gpt2": GPT2Config(vocab_size=27, n_embd=32, n_layer=2, n_head=4, **SPECIAL),
    "cohere": CohereConfig(**SIZES, **SPECIAL, num_key_value_heads=2, intermediate_size=48),
}


@pytest.fixture
def make_policy(build_tokenizer) -> Callable[[str], Policy]:
    def make(family: str) -> Policy:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIGS[family])
        return as_policy(model, build_tokenizer(), name=family)

    return make


def reward_head(policy: Policy, part: ScalarPart | None = None) -> tuple[Head, Manifest]:
    parts = Parts(reward=part or ScalarPart(form="linear"))
    identity = policy.identity
    torch.manual_seed(1)
    head = Head(parts, identity.hidden_size, identity.vocab_size)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    manifest = Manifest(
        "calm", parts, identity.hidden_size, identity.vocab_size, identity.base_model, 0.5, 2.0, "12 pairs"
    )
    return head, manifest


def some_replies(policy: Policy) -> list[EncodedReply]:
    encoder = ReplyEncoder(policy.tokenizer)
    texts = ["a", "b c d e f g h", "p q", "", "a a a a a a a a a a a a"]
    return [encoder.encode("g h i" if i % 2 else "r", text) for i, text in enumerate(texts)]


def export(policy: Policy, folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Head, Manifest]:
    head, manifest = reward_head(policy)
    pad = set_pad_token(policy.tokenizer, policy.identity.vocab_size)
    model = as_classifier(head, manifest, policy, pad)
    check_same(model, head, policy)
    set_dtype(model, head, dtype)
    save_classifier(model, policy.tokenizer, "# how to read it\n", folder)
    return head, manifest


def padded_logits(
    model: PreTrainedModel, folder: Path, replies: list[EncodedReply], side: str
) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side=side)
    rows = [[*reply.prompt_ids, *reply.reply_ids] for reply in replies]
    batch = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
    with torch.no_grad():
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]


@pytest.mark.parametrize(
    ("family", "side"), [("llama", "right"), ("llama", "left"), ("qwen2", "left"), ("gpt2", "right")]
)
def test_logits_at_the_ends_of_padded_replies_are_the_reward_at_s_t(
    make_policy, tmp_path: Path, family: str, side: str
):
    """Five replies of 1 to 13 tokens in one batch; GPT-2's positions are absolute, and count padding on the
    left."""
    policy = make_policy(family)
    replies = some_replies(policy)
    head, _ = reward_head(policy)
    wanted = score_ends(head.reward, FeatureCache(policy, show_progress=False), replies)
    export(policy, tmp_path / "out")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    logits = padded_logits(model, tmp_path / "out", replies, side)
    assert wanted.std() > 0.5
    torch.testing.assert_close(logits + model.config.trimtab_reward_bias, wanted, atol=1e-4, rtol=1e-4)
    config = model.config
    assert (config.trimtab_reward_mean, config.trimtab_reward_std) == (0.5, 2.0)
    assert config.architectures == [f"{type(model).__name__}"]
    assert not list((tmp_path / "out").glob("*.bin"))


def test_a_pad_token_that_ends_replies_is_replaced(make_policy, tmp_path: Path):
    policy = make_policy("llama")
    policy.tokenizer.pad_token = policy.tokenizer.eos_token
    replies = some_replies(policy)
    head, _ = export(policy, tmp_path / "out")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert model.config.pad_token_id not in {tokenizer.eos_token_id, *(r.reply_ids[-1] for r in replies)}
    wanted = score_ends(head.reward, FeatureCache(policy, show_progress=False), replies)
    logits = padded_logits(model, tmp_path / "out", replies, "right")
    torch.testing.assert_close(logits + model.config.trimtab_reward_bias, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_exported_reward_comes_back_exactly_with_its_units(make_policy, tmp_path: Path, dtype):
    """Also from a bfloat16 copy: the backbone is compared as fingerprints compare it, the score layer is not
    rounded."""
    head, manifest = export(make_policy("llama"), tmp_path / "out", dtype)
    policy = make_policy("llama")
    again, told = as_head(
        read_classifier(tmp_path / "out", policy), policy, name="calm", trained_on="12 pairs"
    )
    assert told == manifest
    assert torch.equal(again.reward.weight, head.reward.weight)
    assert again.reward.bias.item() == pytest.approx(head.reward.bias.item())


def test_a_backbone_that_was_trained_is_refused_by_its_first_tensor(make_policy, tmp_path: Path):
    export(make_policy("llama"), tmp_path / "out")
    policy = make_policy("llama")
    with torch.no_grad():
        policy.model.model.layers[1].mlp.up_proj.weight[3, 5] += 0.1
    with pytest.raises(HeadError, match=r"layers\.1\.mlp\.up_proj\.weight differs from that of llama"):
        read_classifier(tmp_path / "out", policy)


def test_a_backbone_of_another_family_or_size_is_refused(make_policy, tmp_path: Path):
    export(make_policy("llama"), tmp_path / "out")
    with pytest.raises(HeadError, match="unlike in gpt2"):
        read_classifier(tmp_path / "out", make_policy("gpt2"))


def test_what_is_no_trained_classification_with_one_label_is_refused(make_policy, tmp_path: Path):
    policy = make_policy("llama")
    policy.model.config.num_labels = 1
    policy.model.save_pretrained(tmp_path / "lm")
    with pytest.raises(HeadError, match=r"it has no score\.weight"):
        read_classifier(tmp_path / "lm", policy)
    config = LlamaConfig(**CONFIGS["llama"].to_dict() | {"id2label": {0: "a", 1: "b"}})
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "two")
    with pytest.raises(HeadError, match="has 2 labels"):
        read_classifier(tmp_path / "two", policy)


def test_pickled_weights_are_not_read(make_policy, tmp_path: Path):
    policy = make_policy("llama")
    export(policy, tmp_path / "out")
    weights = tmp_path / "out" / "model.safetensors"
    weights.rename(tmp_path / "out" / "pytorch_model.bin")
    with pytest.raises(PolicyError, match="safetensors"):
        read_classifier(tmp_path / "out", policy)


@pytest.mark.parametrize(
    ("part", "says"),
    [
        (ScalarPart(form="mlp", width=4), "is an mlp"),
        (ScalarPart(form="linear", bins=5, low=-1, high=1), "is a distribution over bins"),
    ],
)
def test_a_reward_that_one_layer_cannot_hold_is_refused(make_policy, part: ScalarPart, says: str):
    _, manifest = reward_head(make_policy("llama"), part)
    with pytest.raises(HeadError, match=f"{says}.*--reward.form linear"):
        check_exportable(manifest)


def test_a_head_without_a_reward_is_refused(make_policy):
    _, manifest = reward_head(make_policy("llama"))
    value_only = dataclasses.replace(manifest, parts=Parts(value=ScalarPart()))
    with pytest.raises(HeadError, match="no reward part"):
        check_exportable(value_only)


def test_a_family_without_a_classification_is_refused_by_name(make_policy):
    policy = make_policy("cohere")
    with pytest.raises(HeadError, match="no sequence classification for cohere"):
        as_classifier(*reward_head(policy), policy, 0)


def test_a_classification_that_scores_something_else_is_refused_before_it_is_written(make_policy):
    policy = make_policy("llama")
    head, manifest = reward_head(policy)
    model = as_classifier(head, manifest, policy, 0)
    check_same(model, head, policy)
    with torch.no_grad():
        model.score.weight[0, 0] += 0.01
    with pytest.raises(HeadError, match="does not score"):
        check_same(model, head, policy)


def test_an_export_replaces_nothing_and_a_failed_one_leaves_nothing(make_policy, tmp_path: Path, monkeypatch):
    policy = make_policy("llama")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("irreplaceable")
    with pytest.raises(HeadError, match="is not empty"):
        export(policy, tmp_path / "thesis")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(policy.tokenizer), "save_pretrained", full)
    with pytest.raises(HeadError, match="No space left on device"):
        export(policy, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis"]
