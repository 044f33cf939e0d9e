from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from trained_tokenizers import FAMILIES, TEMPLATES
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from trimtab.guidance.text.encoding import ReplyEncoder, decode, following_tokens
from trimtab.guidance.text.render import render_chat

STORIES = Path(__file__).parents[4] / "shared" / "models" / "stories656K"
SMOLLM2 = Path(os.environ.get("TRIMTAB_SMOLLM2", "/nowhere"))
PROMPTS = [
    *("Once upon a time", "Once upon a tim", "The answer: ", "The answer is 12", "Tell me\n", "a\n\n"),
    "Question: who is there?\nAnswer:",
]
REPLIES = [
    *("Sure, here", " there was", "e there", "yes", "34 and", "\nyes", "\n\nTell", ", yes", "Sure ", "?"),
    "the   sea",
]


def check(tokenizer: PreTrainedTokenizerFast, *, is_chat: bool, around: bool = False) -> None:
    """The prompt's tokens are those that are served, and with the reply's they read as the whole. around: the
    template writes spaces around a reply."""
    encoder = ReplyEncoder(tokenizer, "chat" if is_chat else "text")
    for prompt in PROMPTS:
        turns = [{"role": "user", "content": prompt}]
        text = render_chat(tokenizer, turns, add_generation_prompt=True) if is_chat else prompt
        served = tuple(tokenizer(text, add_special_tokens=not is_chat)["input_ids"])
        whole = decode(tokenizer, served)
        for reply in REPLIES:
            encoded = encoder.encode(prompt, reply)
            said = decode(tokenizer, (*served, *encoded.reply_ids[:-1])).removeprefix(whole)
            assert encoded.prompt_ids == served
            assert said == reply or (around and said.strip(" ") == reply.strip(" ")), (prompt, reply)


@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES.keys())
@pytest.mark.parametrize("template", ["text", *TEMPLATES])
def test_a_prompts_served_tokens_and_a_replys_read_as_the_whole(
    make: Callable[[], PreTrainedTokenizerFast], template: str
):
    tokenizer = make()
    tokenizer.chat_template = TEMPLATES.get(template)
    check(tokenizer, is_chat=template != "text", around=template == "llama-2")


@pytest.mark.parametrize("folder", [STORIES, SMOLLM2], ids=["stories656K", "SmolLM2"])
def test_a_published_tokenizers_prompt_and_reply_read_as_the_whole(folder: Path):
    if not folder.exists():
        pytest.skip(f"no model at {folder}; TRIMTAB_SMOLLM2 names the folder of SmolLM2")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    check(tokenizer, is_chat=False)
    if tokenizer.chat_template:
        check(tokenizer, is_chat=True)


@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES.keys())
def test_the_tokens_are_the_wholes_wherever_that_begins_with_the_prompts(
    make: Callable[[], PreTrainedTokenizerFast],
):
    """At a word's beginning nothing merges: what a model saw in training is what it draws."""
    tokenizer = make()
    prompt, reply = "Tell me about the boat.", " There is no answer."
    ids, whole = tokenizer(prompt)["input_ids"], tokenizer(prompt + reply)["input_ids"]
    if whole[: len(ids)] != ids:
        pytest.skip("its tokens go across words")
    assert following_tokens(tokenizer, prompt, ids, reply, is_chat=False) == tuple(whole[len(ids) :])


def test_a_reply_has_no_space_of_its_own_where_sentencepiece_would_add_one():
    tokenizer = FAMILIES["llama, legacy"]()
    tokenizer.chat_template = TEMPLATES["chatml"]
    encoded = ReplyEncoder(tokenizer).encode("Tell me", "yes")
    assert tokenizer.convert_ids_to_tokens(encoded.reply_ids)[0] not in ("▁", "▁yes", "▁y")
    assert (
        tokenizer.convert_ids_to_tokens(tokenizer("yes", add_special_tokens=False)["input_ids"])[0][0] == "▁"
    )


def test_a_reply_in_a_chat_has_the_space_that_its_template_writes_before_it():
    """Llama 2 was trained on `[/INST] Sure </s>`, and draws `▁Sure`."""
    tokenizer = FAMILIES["llama"]()
    tokenizer.chat_template = TEMPLATES["llama-2"]
    encoded = ReplyEncoder(tokenizer).encode("Tell me", "Sure, here")
    assert decode(tokenizer, encoded.prompt_ids).endswith("[INST] Tell me [/INST]")
    assert decode(tokenizer, (*encoded.prompt_ids, *encoded.reply_ids)).endswith("[/INST] Sure, here </s>")


def test_what_a_tokenizer_cannot_say_is_split_as_the_whole_is():
    tokenizer = FAMILIES["unigram"]()
    ids = tokenizer("Tell me")["input_ids"]
    assert following_tokens(tokenizer, "Tell me", ids, "日本", is_chat=False) == (tokenizer.unk_token_id,)
