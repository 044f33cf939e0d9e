"""Decoder of the CPU backend against transformers' own forward, on tiny models of several kinds."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from trimtab.kernels.cpu.decoder import Decoder, DecoderSpec, LayerSpec
from trimtab.kernels.cpu.weights import PackedWeight

LENGTH = 40
SIZES: dict[str, Any] = {
    "vocab_size": 67,
    "hidden_size": 56,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 600,
}
SEVEN = {"num_key_value_heads": 1, "num_attention_heads": 7}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "llama-one-head-of-keys": LlamaConfig(**SIZES | SEVEN),
    "llama-groups-of-seven": LlamaConfig(**SIZES | SEVEN, head_dim=64),
    "llama-no-groups": LlamaConfig(
        **SIZES | {"num_attention_heads": 8, "num_key_value_heads": 8}, head_dim=80, hidden_act="gelu"
    ),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=32),
    "phi3-half-rotated": Phi3Config(**SIZES | {"hidden_size": 64}, partial_rotary_factor=0.5, pad_token_id=0),
    "gemma2": Gemma2Config(**SIZES, head_dim=16, sliding_window=9, query_pre_attn_scalar=24),
    "gemma3": Gemma3TextConfig(
        **SIZES,
        head_dim=32,
        sliding_window=9,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
}


def make_model(name: str) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation="eager").eval()
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * (0.3 if parameter.dim() == 1 else 0.15)
    return model


def angles(model: Any, kind: str, length: int) -> tuple[Tensor, Tensor]:
    places = torch.arange(length)[None]
    x = torch.zeros(1, length, 1)
    arguments = (kind,) if "gemma3" in model.config.model_type else ()
    cos, sin = model.model.rotary_emb(x, places, *arguments)
    half = cos.shape[-1] // 2
    return cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous()


def spec_of(model: Any, library, form="float32", block_size: int = 16, length: int = 640) -> DecoderSpec:
    """The decoder of a transformers model of the kinds above."""
    config, body = model.config, model.model
    gemma = config.model_type.startswith("gemma")

    def norm(module: Any) -> Tensor:
        return module.weight.data.float() + gemma

    def pack(*modules: Any) -> PackedWeight:
        whole = torch.cat([module.weight.data for module in modules])
        if form == "rounding":
            return PackedWeight(whole, "bfloat16", library, rounds_inputs=True)
        return PackedWeight(whole, form, library)

    def bias(*modules: Any) -> Tensor | None:
        return None if modules[0].bias is None else torch.cat([module.bias.data for module in modules])

    layers = []
    for i, layer in enumerate(body.layers):
        attention, mlp = layer.self_attn, layer.mlp
        kind = config.layer_types[i] if getattr(config, "layer_types", None) else "full_attention"
        cos, sin = angles(model, kind, length)
        phi = config.model_type == "phi3"
        qkv = (attention.qkv_proj,) if phi else (attention.q_proj, attention.k_proj, attention.v_proj)
        gate_up = (mlp.gate_up_proj,) if phi else (mlp.gate_proj, mlp.up_proj)
        layers.append(
            LayerSpec(
                qkv=pack(*qkv),
                qkv_bias=bias(*qkv),
                o=pack(attention.o_proj),
                o_bias=bias(attention.o_proj),
                gate_up=pack(*gate_up),
                gate_up_bias=bias(*gate_up),
                down=pack(mlp.down_proj),
                down_bias=bias(mlp.down_proj),
                input_norm=norm(layer.input_layernorm),
                pre_mlp_norm=norm(
                    layer.pre_feedforward_layernorm if gemma else layer.post_attention_layernorm
                ),
                post_attention_norm=norm(layer.post_attention_layernorm) if gemma else None,
                post_mlp_norm=norm(layer.post_feedforward_layernorm) if gemma else None,
                q_norm=norm(attention.q_norm) if hasattr(attention, "q_norm") else None,
                k_norm=norm(attention.k_norm) if hasattr(attention, "k_norm") else None,
                cos=cos,
                sin=sin,
                rotary_dim=2 * cos.shape[1],
                scale=attention.scaling,
                softcap=getattr(config, "attn_logit_softcapping", None),
                window=config.sliding_window if kind == "sliding_attention" else None,
            )
        )
    return DecoderSpec(
        layers=layers,
        embedding=body.embed_tokens.weight.data,
        embedding_scale=config.hidden_size**0.5 if gemma else 1.0,
        final_norm=norm(body.norm),
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=layers[0].qkv.shape[0] // (config.num_attention_heads + 2 * config.num_key_value_heads),
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        block_size=block_size,
        eps=config.rms_norm_eps,
        activation="gelu_tanh" if gemma else config.hidden_act,
    )


class Paged:
    """Rows of a decoder with blocks of their own, scattered over a cache that is full of NaN."""

    def __init__(self, spec: DecoderSpec, library, num_rows: int, length: int, dtype=torch.float32) -> None:
        self.decoder, size = Decoder(spec, library), spec.block_size
        self.size, per_row = size, -(-length // size)
        order = torch.randperm(num_rows * per_row, generator=torch.Generator().manual_seed(1)) + 1
        self.tables = order.view(num_rows, per_row)
        shape = (num_rows * per_row + 1, spec.num_kv_heads, spec.head_dim, size)
        self.keys = [torch.full(shape, torch.nan, dtype=dtype) for _ in spec.layers]
        self.values = [keys.transpose(2, 3).contiguous() for keys in self.keys]

    def step(self, chunks: list[tuple[int, list[int], int]]) -> list[Tensor]:
        """Hidden states of each chunk (row, ids, first position)."""
        sizes = [len(ids) for _, ids, _ in chunks]
        positions = torch.cat([torch.arange(first, first + len(ids)) for _, ids, first in chunks])
        rows = torch.tensor([row for row, _, _ in chunks])
        owner = rows.repeat_interleave(torch.tensor(sizes))
        slots = self.tables[owner, positions // self.size] * self.size + positions % self.size
        hidden = self.decoder.run(
            torch.tensor(list(itertools.chain(*(ids for _, ids, _ in chunks)))),
            positions,
            slots,
            torch.tensor([0, *itertools.accumulate(sizes)]),
            self.tables[rows],
            self.keys,
            self.values,
            torch.arange(sum(sizes)),
        )
        return list(hidden.split(sizes))


def prompt(length: int, seed: int = 0) -> list[int]:
    return torch.randint(0, 67, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("name", CONFIGS)
def test_hidden_states_are_those_of_the_model_itself(library, name):
    model = make_model(name)
    paged = Paged(spec_of(model, library), library, 2, LENGTH)
    texts = [prompt(LENGTH), prompt(LENGTH, 1)]
    with torch.inference_mode():
        right = model.model(torch.tensor(texts)).last_hidden_state
    got: list[list[Tensor]] = [[], []]
    for steps in (
        [(0, 0, 7)],
        [(0, 7, 8), (1, 0, 25)],
        [(1, 25, 26), (0, 8, 9)],
        [(0, 9, LENGTH), (1, 26, LENGTH)],
    ):
        out = paged.step([(row, texts[row][first:end], first) for row, first, end in steps])
        for (row, _, _), hidden in zip(steps, out, strict=True):
            got[row].append(hidden)
    for row in (0, 1):
        torch.testing.assert_close(torch.cat(got[row]), right[row], atol=3e-5, rtol=3e-5)


@pytest.mark.parametrize("name", ["gemma2", "qwen3"])
def test_a_row_of_several_parts_of_keys_is_that_of_the_model_itself(library, name):
    """Read at once, then token by token, past what is attended to together and past a window."""
    length, model = 530, make_model(name)
    for layer in model.model.layers:
        if getattr(layer.self_attn, "sliding_window", None):
            layer.self_attn.sliding_window = 200
    model.config.sliding_window = 200
    paged, text = Paged(spec_of(model, library), library, 1, length), prompt(length)
    with torch.inference_mode():
        right = model.model(torch.tensor([text])).last_hidden_state[0]
    got = [paged.step([(0, text[:522], 0)])[0]]
    got += [paged.step([(0, [text[i]], i)])[0] for i in range(522, length)]
    torch.testing.assert_close(torch.cat(got), right, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_token_is_the_same_bits_however_its_row_is_cut_and_batched(library, dtype):
    """Token by token, all at once, in chunks beside other rows, and with blocks that fit no vector."""
    length = 530
    model, text = make_model("gemma2"), prompt(length)
    model.config.sliding_window = 300
    spec = spec_of(model, library, "bfloat16")
    whole = torch.cat(Paged(spec, library, 1, length, dtype).step([(0, text, 0)]))
    chunked = Paged(spec, library, 3, length, dtype)
    got = []
    for first, end in itertools.pairwise([0, 1, 100, 256, 270, 511, 515, 516, 517, 518, 519, 530]):
        others = [(1, prompt(3, first), 3 * len(got)), (2, prompt(1), len(got))]
        got.append(chunked.step([others[0], (0, text[first:end], first), others[1]])[1])
    assert torch.equal(torch.cat(got), whole)
    odd = Paged(spec_of(model, library, "bfloat16", block_size=7), library, 1, length, dtype)
    got = [odd.step([(0, text[:500], 0)])[0]]
    got += [odd.step([(0, [text[i]], i)])[0] for i in range(500, 530)]
    assert torch.equal(torch.cat(got), whole)


def test_keys_and_values_in_pairs_are_near_and_the_same_bits_however_a_row_is_cut(library):
    if not library.multiplies_bfloat16:
        pytest.skip("this instruction set does not multiply bfloat16")
    length, text = 530, prompt(530)
    torch.manual_seed(0)
    config = Gemma2Config(
        **{**SIZES, "hidden_size": 60, "num_attention_heads": 6}, head_dim=32, sliding_window=299
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    spec = spec_of(model, library, "rounding")
    whole = torch.cat(Paged(spec, library, 1, length, torch.bfloat16).step([(0, text, 0)]))
    exact = torch.cat(Paged(spec_of(model, library), library, 1, length).step([(0, text, 0)]))
    assert 1e-4 < (whole - exact).norm() / exact.norm() < 1e-2
    chunked, got = Paged(spec, library, 2, length, torch.bfloat16), []
    for first, end in itertools.pairwise([0, 1, 2, 101, 256, 270, 511, 515, *range(516, 531)]):
        other = (1, prompt(3, first), 3 * len(got))
        got.append(chunked.step([other, (0, text[first:end], first)])[1])
    assert torch.equal(torch.cat(got), whole)


def test_only_the_asked_tokens_come_out_and_each_alike(best):
    model, text = make_model("llama"), prompt(20)
    spec = spec_of(model, best)
    every = Paged(spec, best, 1, 20).step([(0, text, 0)])[0]
    paged = Paged(spec, best, 1, 20)
    slots = paged.tables[0][torch.arange(20) // 16] * 16 + torch.arange(20) % 16

    def run(outputs: list[int]) -> Tensor:
        step = (torch.tensor(text), torch.arange(20), slots, torch.tensor([0, 20]), paged.tables)
        return paged.decoder.run(*step, paged.keys, paged.values, torch.tensor(outputs, dtype=torch.int64))

    assert torch.equal(run([19, 3, 3]), every[[19, 3, 3]])
    assert run([]).shape == (0, spec.hidden)


def test_a_row_of_nan_harms_no_other(best):
    model = make_model("gemma3")
    spec = spec_of(model, best)
    spec.embedding[5] = torch.nan
    texts = [[i for i in prompt(30) if i != 5], [5, 6, 7], [i for i in prompt(30, 2) if i != 5]]
    alone = [Paged(spec, best, 1, 40).step([(0, text, 0)])[0] for text in texts]
    paged = Paged(spec, best, 3, 40)
    together = paged.step([(row, text, 0) for row, text in enumerate(texts)])
    assert torch.equal(together[0], alone[0]) and torch.equal(together[2], alone[2])
    assert together[1].isnan().all()
    after = paged.step([(row, [9], len(text)) for row, text in enumerate(texts)])
    assert after[0].isfinite().all() and after[1].isnan().all() and after[2].isfinite().all()


def test_a_packed_embedding_and_scaled_residuals(best):
    """Granite's: x + s·f(x); and the embedding read out of a tied head's panels."""
    model, text = make_model("llama"), prompt(9)
    plain = spec_of(model, best)
    tied = PackedWeight(plain.embedding, "float32", best)
    scaled = replace(plain, embedding=tied, residual_scale=0.25, embedding_scale=3.0)
    got = Paged(scaled, best, 1, 9).step([(0, text, 0)])[0]
    for layer in model.model.layers:
        for module in (layer.self_attn.o_proj, layer.mlp.down_proj):
            module.weight.data *= 0.25
            module.bias.data *= 0.25
    model.model.embed_tokens.weight.data *= 3
    with torch.inference_mode():
        right = model.model(torch.tensor([text])).last_hidden_state[0]
    torch.testing.assert_close(got, right, atol=3e-5, rtol=3e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_embedding_in_two_bytes_is_read_as_it_is(best, dtype):
    spec, text = spec_of(make_model("llama"), best), prompt(9)
    stored = spec.embedding.to(dtype)
    got, right = (
        Paged(replace(spec, embedding=each), best, 1, 9).step([(0, text, 0)])[0]
        for each in (stored, stored.float())
    )
    assert torch.equal(got, right)


def test_parts_that_do_not_fit_are_named(best):
    spec = spec_of(make_model("llama"), best)
    with pytest.raises(ValueError, match=r"layer 0: gate_up is \(144, 56\), not \(146, 56\)"):
        Decoder(replace(spec, intermediate=73), best)
    paged = Paged(spec, best, 1, 9)
    paged.keys[1] = paged.keys[1].half()
    with pytest.raises(ValueError, match="keys must be"):
        paged.step([(0, [1], 0)])
