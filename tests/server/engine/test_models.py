"""Greedy tokens of many requests in flight equal transformers' generate, one by one."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from tiny_models import SIZES, VOCAB_SIZE, save_random_model
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PhiConfig,
    PretrainedConfig,
    Qwen3Config,
)

from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.request import Request, SamplingParams
from trimtab.server.rollouts.sample import sample

STORIES = Path(__file__).parents[4] / "shared" / "models" / "stories656K"
NUM_REQUESTS = 17
TOP2_GAP = 1e-4
LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 2.5, 3.0, 3.5],
    "original_max_position_embeddings": 64,
    "factor": 2.0,
}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=8),
    "mistral with a sliding window": MistralConfig(**SIZES, head_dim=8, sliding_window=9),
    "gemma2": Gemma2Config(
        **SIZES, head_dim=8, sliding_window=9, query_pre_attn_scalar=8, attn_logit_softcapping=0.5
    ),
    "gemma3": Gemma3TextConfig(
        **SIZES, head_dim=8, sliding_window=9, query_pre_attn_scalar=8, layer_types=LAYERS
    ),
    "granite": GraniteConfig(
        **SIZES,
        logits_scaling=3.0,
        attention_multiplier=0.3,
        residual_multiplier=0.5,
        embedding_multiplier=2.0,
    ),
    "gpt2": GPT2Config(
        vocab_size=VOCAB_SIZE,
        n_embd=32,
        n_layer=3,
        n_head=4,
        n_positions=128,
        bos_token_id=256,
        eos_token_id=257,
    ),
    "phi": PhiConfig(**{**SIZES, "num_key_value_heads": 4}),
    "phi3": Phi3Config(**SIZES),
    "phi3 with longrope": Phi3Config(**SIZES, rope_parameters=LONGROPE, original_max_position_embeddings=64),
}


def requests(max_len: int, vocab_size: int) -> list[Request]:
    rng = random.Random(1)
    made = []
    for i in range(NUM_REQUESTS):
        num_prompt, num_new = rng.randint(1, max_len // 2), rng.randint(1, max_len // 2 - 1)
        prompt = tuple(rng.randrange(vocab_size - 4) for _ in range(num_prompt))
        made.append(
            Request(str(i), prompt, SamplingParams(max_tokens=num_new, temperature=0, ignore_eos=True))
        )
    return made


def assert_equal_up_to_near_ties(model: torch.nn.Module, request: Request, got: list[int]) -> None:
    """Where the tokens part, the model's own two best logits must be closer than TOP2_GAP."""
    prompt = torch.tensor([request.prompt_token_ids])
    out = model.generate(  # type: ignore[operator]
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=request.sampling.max_tokens,
        min_new_tokens=request.sampling.max_tokens,
        do_sample=False,
        output_scores=False,
        output_logits=True,
        return_dict_in_generate=True,
        eos_token_id=None,
        pad_token_id=0,
    )
    want = out.sequences[0, prompt.shape[1] :].tolist()
    assert len(got) == len(want)
    for position, (ours, theirs) in enumerate(zip(got, want, strict=True)):
        if ours != theirs:
            top = out.logits[position][0].float().topk(2).values
            assert top[0] - top[1] < TOP2_GAP, f"request {request.request_id} parts at token {position}"
            return


def check(folder: Path, **options: object) -> Engine:
    engine = Engine.from_config(EngineConfig(folder, max_num_seqs=16, block_size=8, **options))  # type: ignore[arg-type]
    made = requests(engine.policy.max_model_len, engine.policy.vocab_size)
    completions = sample(engine, made)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    for completion in completions:
        assert_equal_up_to_near_ties(model, completion.request, completion.token_ids)
    assert engine.scheduler.blocks.num_free == engine.scheduler.blocks.num_usable
    return engine


@pytest.mark.parametrize("name", CONFIGS)
def test_17_requests_in_flight_equal_generate_one_by_one(name: str, tmp_path: Path):
    check(save_random_model(CONFIGS[name], tmp_path), max_num_batched_tokens=48)


def test_the_long_factors_of_longrope_hold_for_prompts_past_the_original_length(tmp_path: Path):
    folder = save_random_model(CONFIGS["phi3 with longrope"], tmp_path)
    engine = Engine.from_config(EngineConfig(folder, block_size=8, max_model_len=128))
    rng = random.Random(2)
    made = [
        Request(
            str(n),
            tuple(rng.randrange(250) for _ in range(n)),
            SamplingParams(max_tokens=20, temperature=0, ignore_eos=True),
        )
        for n in (66, 80, 101)
    ]
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    for completion in sample(engine, made):
        assert_equal_up_to_near_ties(model, completion.request, completion.token_ids)


@pytest.mark.parametrize(
    "options",
    [
        {"padding": "buckets"},
        {"async_depth": 1},
        {"padding": "buckets", "async_depth": 1, "prefix_caching": False},
        {"max_num_batched_tokens": 16},
        {"num_blocks": 36},
    ],
    ids=str,
)
def test_every_engine_option_gives_the_same_tokens(options: dict[str, object], llama_folder: Path):
    check(llama_folder, **options)


@pytest.mark.skipif(not STORIES.exists(), reason="the shared stories656K model is not beside this checkout")
def test_a_real_pretrained_model_equals_generate():
    check(STORIES, max_model_len=100)
