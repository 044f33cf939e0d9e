from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from examples.toy import HEADS_DIR, MODEL_DIR
from examples.toy.corpus import REQUEST_WEIGHT, batches, encode
from examples.toy.grammar.conversation import conversations
from examples.toy.policy import PolicyConfig, PolicyReport, train_policy
from examples.toy.tokenizer import ASSISTANT, END, PAD

TINY = PolicyConfig(
    num_conversations=300,
    vocab_size=400,
    hidden_size=32,
    intermediate_size=64,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    warmup_steps=5,
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PolicyReport]:
    folder = tmp_path_factory.mktemp("policy")
    return folder, train_policy(TINY, folder, seed=0)


@pytest.fixture(scope="module")
def tokenizer(trained: tuple[Path, PolicyReport]) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(trained[0])


def test_training_learns_something(trained: tuple[Path, PolicyReport]) -> None:
    assert trained[1].loss_seen_topics < 0.95 * math.log(TINY.vocab_size)


def test_the_same_seed_trains_the_same_policy(trained: tuple[Path, PolicyReport], tmp_path: Path) -> None:
    assert train_policy(TINY, tmp_path, seed=0) == trained[1]
    first, second = (
        AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (trained[0], tmp_path)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_reply_ends_with_the_end_of_sequence_token(
    trained: tuple[Path, PolicyReport], tokenizer: PreTrainedTokenizerFast
) -> None:
    model = AutoModelForCausalLM.from_pretrained(trained[0])
    end, pad = tokenizer.convert_tokens_to_ids([END, PAD])
    assert model.generation_config.eos_token_id == model.config.eos_token_id == tokenizer.eos_token_id == end
    assert tokenizer.pad_token_id == pad != end


def test_the_chat_template_makes_a_turn_of_each_message(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " Hello! "},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "Bye."},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|system|>Be brief.<|end|><|user|>Hello!<|end|>"
        "<|assistant|>Hi.<|end|><|user|>Bye.<|end|><|assistant|>"
    )


def test_the_chat_template_refuses_an_unknown_role(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(Exception, match="role must be system, user or assistant, got tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


@pytest.mark.parametrize("text", ["Fix my tap.", "naïve café №7", "水と火 🔥", "  two  spaces\n\ttab"])
def test_any_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_replies_with_their_end_weigh_most(tokenizer: PreTrainedTokenizerFast) -> None:
    (conversation,) = itertools.islice(conversations("lm", 1), 1)
    (example,) = encode([conversation], tokenizer, 512)
    weighed = [t for t, w in zip(example.token_ids, example.weights, strict=True) if w == 1]
    replies = "".join(turn.reply + END for turn in conversation.exchanges)
    assert tokenizer.decode(weighed) == replies
    assert {w for w in example.weights if w != 1} == {REQUEST_WEIGHT}
    assert example.token_ids.count(tokenizer.convert_tokens_to_ids(ASSISTANT)) == len(conversation.exchanges)


def test_batches_hold_every_token_once_and_stay_in_their_budget(tokenizer: PreTrainedTokenizerFast) -> None:
    examples = encode(itertools.islice(conversations("lm", 1), 200), tokenizer, 512)
    made = batches(examples, 2048, tokenizer.pad_token_id, seed=0)
    rows = [
        tuple(ids[weights > 0].tolist())
        for batch in made
        for ids, weights in zip(batch.token_ids, batch.weights, strict=True)
    ]
    assert sorted(rows) == sorted(example.token_ids for example in examples)
    assert all(batch.token_ids.numel() <= 2048 or len(batch.token_ids) == 1 for batch in made)


@pytest.mark.skipif(not (MODEL_DIR / "config.json").exists(), reason="built by `make toy`")
def test_the_committed_model_with_its_heads_is_at_most_15_mb() -> None:
    files = [path for folder in (MODEL_DIR, HEADS_DIR) for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 15e6
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pkl", ".pickle")]
