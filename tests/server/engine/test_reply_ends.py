"""What ends a reply, and with which text: by the engine, over tiny models with cruel tokenizers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from text_tokenizers import byte_fallback, cut_bytes
from tiny_models import SIZES, save_random_model
from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.request import Completion, Request, SamplingParams
from trimtab.server.rollouts.sample import sample

TEMPLATE = (
    "{% for m in messages %}<user>{{ m['content'] }}<turn>{% endfor %}"
    "{% if add_generation_prompt %}<user>{% endif %}"
)
Make = Callable[..., Engine]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """An engine whose model names no other end than `eos` in config.json and generation_config.json."""

    def make(tokenizer: PreTrainedTokenizerFast, template: str | None = None, eos: int = 3) -> Engine:
        sizes = {**SIZES, "vocab_size": len(tokenizer), "eos_token_id": eos}
        save_random_model(LlamaConfig(**sizes), tmp_path)
        GenerationConfig(eos_token_id=eos).save_pretrained(tmp_path)
        tokenizer.chat_template = template
        tokenizer.save_pretrained(tmp_path)
        return Engine.from_config(EngineConfig(tmp_path, block_size=8, max_num_seqs=8))

    return make


def reply(engine: Engine, prompt: tuple[int, ...] = (65, 66), **sampling: object) -> Completion:
    sampling = {"max_tokens": 12, "seed": 0, **sampling}
    request = Request("r", prompt, SamplingParams(**sampling))  # type: ignore[arg-type]
    return sample(engine, [request])[0]


def forced(*tokens: int) -> dict[str, object]:
    """Draws one of the tokens each time."""
    return {"logit_bias": tuple((token, 100.0) for token in tokens), "temperature": 0.0}


@pytest.mark.parametrize("end", ["model", "tokenizer", "template"])
def test_what_any_of_them_names_ends_a_reply(make: Make, end: str):
    tokenizer = cut_bytes()
    token = {"model": 3, **dict(zip(("tokenizer", "template"), tokenizer.all_special_ids, strict=False))}
    token["template"] = tokenizer.convert_tokens_to_ids("<turn>")
    done = reply(make(tokenizer, TEMPLATE), **forced(token[end]))
    assert (done.token_ids, done.text, done.finish_reason) == ([token[end]], "", "stop")


def test_a_special_token_that_nobody_names_ends_nothing(make: Make):
    tokenizer = cut_bytes()
    turn = tokenizer.convert_tokens_to_ids("<turn>")
    assert reply(make(tokenizer), **forced(turn)).finish_reason == "length"


@pytest.mark.parametrize("ignore_eos", [False, True])
@pytest.mark.parametrize("stop", ["<turn>", "<eos>", "<shown>"])
def test_a_stop_that_is_an_added_token_ends_the_reply_at_it(make: Make, stop: str, ignore_eos: bool):
    tokenizer = cut_bytes()
    token = tokenizer.convert_tokens_to_ids(stop)
    done = reply(make(tokenizer), stop=("x", stop), ignore_eos=ignore_eos, **forced(token))
    assert (done.token_ids, done.text, done.finish_reason) == ([token], "", "stop")


def test_a_stop_string_in_bytes_ends_the_reply_at_its_last_byte(make: Make):
    newline = 1 + ord("\n")
    done = reply(make(byte_fallback()), stop=("\n\n",), **forced(newline))
    assert (done.token_ids, done.text, done.finish_reason) == ([newline, newline], "", "stop")


@pytest.mark.parametrize("tokenizer", [cut_bytes, byte_fallback])
@pytest.mark.parametrize("seed", range(8))
def test_any_reply_is_the_text_of_its_tokens(
    make: Make, tokenizer: Callable[[], PreTrainedTokenizerFast], seed: int
):
    made = tokenizer()
    engine = make(made)
    hello = made.convert_tokens_to_ids("▁Hello") if tokenizer is byte_fallback else ord("a")
    done = reply(engine, (hello,), seed=seed, temperature=3.0, max_tokens=60, ignore_eos=True)
    both = made.decode([hello, *done.token_ids], skip_special_tokens=True)
    assert made.decode([hello]) + done.text == both


def test_a_reply_that_runs_out_of_length_in_a_stop_string_is_cut_at_it(make: Make):
    """A byte is held back while the run it stands in may go on; the end of the reply ends the run."""
    engine = make(byte_fallback())
    done = reply(engine, stop=("AA",), max_tokens=2, **forced(1 + ord("A")))
    assert (done.text, done.finish_reason) == ("", "stop")
    done = reply(engine, stop=("AAA",), max_tokens=2, **forced(1 + ord("A")))
    assert (done.text, done.finish_reason) == ("AA", "length")
