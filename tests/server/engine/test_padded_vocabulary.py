"""Ids that a checkpoint is padded with and no token has: nothing draws, reports or counts them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import SIZES, byte_tokenizer, save_random_head, save_random_model
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, PretrainedConfig

from trimtab.guidance import policy as training
from trimtab.guidance.features.source import FeatureCache
from trimtab.guidance.heads.store import load_head
from trimtab.guidance.text.encoding import EncodedReply
from trimtab.guidance.training.objectives.tilt import Tilt
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.request import Completion, Guidance, InvalidRequestError, Request, SamplingParams
from trimtab.server.rollouts.sample import sample

NUM_TOKENS = len(byte_tokenizer())
PADDED = 300
CONFIGS: dict[str, PretrainedConfig] = {
    "own": LlamaConfig(**{**SIZES, "vocab_size": PADDED}),
    "tied": LlamaConfig(**{**SIZES, "vocab_size": PADDED}, tie_word_embeddings=True),
    "softcap": Gemma2Config(**{**SIZES, "vocab_size": PADDED}, head_dim=8, final_logit_softcapping=30.0),
}
PROMPT = tuple(b"hello")


@pytest.fixture(scope="module", params=CONFIGS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that would draw nothing but padding: whatever the others get, some padding gets more."""
    folder = save_random_model(CONFIGS[request.param], tmp_path_factory.mktemp(request.param))
    weights = load_file(folder / "model.safetensors")
    name = "lm_head.weight" if "lm_head.weight" in weights else "model.embed_tokens.weight"
    loud = weights[name][: PADDED - NUM_TOKENS]
    weights[name][NUM_TOKENS:] = 40 * loud * torch.tensor([1, -1]).repeat(len(loud))[: len(loud), None]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    save_random_head(folder / "heads", folder, "tied", seed=1)
    save_random_head(folder / "heads", folder, "lowrank", form="lowrank", seed=2)
    return folder


def start(folder: Path, **options: object) -> Engine:
    heads = (folder / "heads/tied", folder / "heads/lowrank")
    config = EngineConfig(folder, heads, block_size=8, max_num_seqs=8, **options)  # type: ignore[arg-type]
    return Engine.from_config(config)


SAMPLINGS = {
    "sampled": SamplingParams(12, ignore_eos=True, seed=1),
    "greedy": SamplingParams(12, ignore_eos=True, temperature=0),
    "truncated": SamplingParams(12, ignore_eos=True, seed=2, top_k=40, top_p=0.95),
    "penalised": SamplingParams(12, ignore_eos=True, seed=3, repetition_penalty=1.3, frequency_penalty=0.5),
    "reported": SamplingParams(12, ignore_eos=True, seed=4, logprobs=20),
}
GUIDANCES = {
    "plain": Guidance(),
    "guided": Guidance(1.5, (("tied", 1.0), ("lowrank", -0.5)), trace=True),
}


def sampled(engine: Engine) -> dict[str, Completion]:
    requests = [Request(f"{s} {g}", PROMPT, SAMPLINGS[s], GUIDANCES[g]) for s in SAMPLINGS for g in GUIDANCES]
    return {done.request.request_id: done for done in sample(engine, requests)}


@pytest.mark.parametrize("options", [{}, {"strict": True}, {"dtype": "bfloat16"}, {"dtype": "float16"}])
def test_padding_is_neither_drawn_nor_reported(folder: Path, options: dict[str, object]):
    for choice in sampled(start(folder, **options)).values():
        for token in choice.tokens:
            base = token.trace.base_top if token.trace else ()
            assert all(i < NUM_TOKENS for i in (token.token_id, *dict(token.top_logprobs), *dict(base)))


def test_log_probabilities_are_of_the_tokens_that_there_are_and_as_training_has_them(folder: Path):
    choice = sampled(start(folder))["reported guided"]
    policy = training.load_policy(folder, device="cpu")
    assert policy.logits(torch.zeros(1, 32)).shape == (1, NUM_TOKENS)
    reply = EncodedReply(PROMPT, tuple(choice.token_ids))
    (h,) = FeatureCache(policy, show_progress=False).get([reply])
    h, drawn = h[:-1], torch.tensor(choice.token_ids)
    weights = dict(GUIDANCES["guided"].heads)
    parts = {name: load_head(folder / "heads" / name, policy.identity)[0].advantage for name in weights}
    tilt = sum(1.5 * w * parts[name](h, policy.lm_head) for name, w in weights.items())
    z = policy.logits(h)
    base, guided = z.log_softmax(-1), (z + tilt).log_softmax(-1)
    at = torch.arange(len(drawn))
    for want, got in (
        (guided[at, drawn], [t.logprob for t in choice.tokens]),
        (base[at, drawn], [t.trace.base_logprob for t in choice.tokens]),
        ((guided.exp() * (guided - base)).sum(-1), [t.trace.kl for t in choice.tokens]),
        (-(base.exp() * base).sum(-1), [t.trace.entropy for t in choice.tokens]),
    ):
        torch.testing.assert_close(torch.tensor(got), want, rtol=1e-3, atol=2e-4)
    lowrank = parts["lowrank"]
    ratio = Tilt(lowrank, policy).log_ratio(h, drawn).log_ratio
    tilted = (z + lowrank(h, policy.lm_head)).log_softmax(-1)
    torch.testing.assert_close(ratio, (tilted - base)[at, drawn], rtol=1e-4, atol=1e-5)


def test_padding_in_a_prompt_or_a_bias_is_refused(folder: Path):
    engine = start(folder)
    engine.check(Request("r", (NUM_TOKENS - 1,)))
    for request in (
        Request("r", (NUM_TOKENS,)),
        Request("r", PROMPT, SamplingParams(logit_bias=((NUM_TOKENS, 100.0),))),
    ):
        with pytest.raises(InvalidRequestError, match=rf"0…{NUM_TOKENS - 1}"):
            engine.check(request)


def test_heads_and_the_policys_name_go_by_the_checkpoint_as_it_is(folder: Path):
    served, trained = start(folder).policy, training.load_policy(folder, device="cpu")
    assert served.vocab_size == trained.vocab_size == NUM_TOKENS
    assert served.identity == trained.identity
    assert served.identity.vocab_size == PADDED
    _, manifest = load_head(folder / "heads/lowrank")
    assert manifest.vocab_size == PADDED
    kept = training.load_policy(folder, device="cpu", with_padding=True)
    own = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(kept.lm_head, own.get_output_embeddings().weight)


def test_the_matrix_takes_no_more_memory(folder: Path):
    model = start(folder).policy.model
    read, written = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    is_shared = read.untyped_storage().data_ptr() == written.untyped_storage().data_ptr()
    assert is_shared == model.config.tie_word_embeddings
