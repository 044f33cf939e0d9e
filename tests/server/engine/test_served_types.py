"""A causal LM of any type that transformers knows is served right at every length, or refused by name.

A tiny model of each type, with windows, chunks and scaled positions that a hundred tokens pass (NEAR), or
that no check on a few tokens can see (FAR).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from served_types import Outcome, outcome_of
from tiny_configs import CAUSAL_LM_TYPES, FAR, NEAR, NUM_LAYERS

REACHES = {"near": NEAR, "far": FAR}
LAYER_TYPES, BACKEND, SINKS = "layers of type", "AttentionInterface", "s_aux"
SMOKE: dict[str, str] = {
    "llama": "",
    "qwen2": "",
    "qwen2_moe": "",
    "qwen3": "",
    "mistral": "",
    "gemma2": "",
    "gemma3_text": "",
    "gemma4_unified": "",
    "granite": "",
    "phi3": "",
    "phimoe": "",
    "gpt2": "",
    "opt": "",
    "cohere2": "",
    "afmoe": "",
    "smollm3": "",
    "starcoder2": "",
    "llama4_text": LAYER_TYPES,
    "hy_v4": LAYER_TYPES,
    "minimax_m3_vl_text": LAYER_TYPES,
    "gpt_oss": SINKS,
    "diffllama": "more than once",
    "doge": "mask of its own",
    "roberta": "does not number",
    "gpt_neo": BACKEND,
    "bloom": BACKEND,
    "falcon": BACKEND,
    "mamba": BACKEND,
}
"""By type, words of its refusal, or none where it is served right."""

UNBUILT: dict[str, str] = {
    "cohere_compass_text": "of transformers 5.17: it cannot set its own weights",
    "dots3_note": "its default vision and adapter sizes contradict one another",
    "emu3": "its text part alone cannot be loaded again",
    "gemma3n": "needs the package timm",
    "gemma4_assistant": "its defaults contradict one another",
    "gemma4_unified_assistant": "reads another model's keys and values",
    "mllama": "its text part alone cannot be loaded again",
    "musicgen": "its configuration is not one of a causal LM",
    "musicgen_melody": "its configuration is not one of a causal LM",
    "qwen4_exp": "the sizes of its indexer have no defaults",
    "qwen4_exp_text": "of transformers 5.17: it has other kinds of layers",
}
"""Types of which no tiny model can be made, and why."""


@pytest.mark.parametrize("model_type", [kind for kind in SMOKE if kind in CAUSAL_LM_TYPES])
def test_a_type_is_served_right_far_beyond_what_start_up_runs_over_or_refused(
    model_type: str, tmp_path: Path
) -> None:
    outcome = outcome_of(model_type, tmp_path, FAR)
    assert outcome.kind == ("refused" if SMOKE[model_type] else "right"), outcome.detail
    assert SMOKE[model_type] in outcome.detail


def test_rotary_scaled_by_the_longest_position_is_refused_where_it_would_be(tmp_path: Path) -> None:
    scaled = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [2.0, 2.5, 3.0, 3.5],
        "short_mscale": 1.2,
        "long_mscale": 1.5,
        "original_max_position_embeddings": FAR.original,
    }
    outcome = outcome_of("phimoe", tmp_path, FAR, {"rope_parameters": scaled})
    assert outcome.kind == "refused"
    assert "--max-model-len" in outcome.detail


def test_scales_by_a_tokens_place_in_the_batch_are_refused(tmp_path: Path) -> None:
    full = {"layer_types": ["full_attention"] * NUM_LAYERS, "no_rope_layers": [0] * NUM_LAYERS}
    outcome = outcome_of("llama4_text", tmp_path, FAR, full)
    assert "attn_temperature_tuning" in outcome.detail
    outcome = outcome_of("llama4_text", tmp_path / "off", FAR, full | {"attn_temperature_tuning": False})
    assert outcome.kind == "right", outcome.detail


WINDOWS_IN_THE_MASK_ALONE = ["phimoe", "qwen2_moe"]


@pytest.mark.parametrize("model_type", WINDOWS_IN_THE_MASK_ALONE)
@pytest.mark.parametrize(
    "options", [{"strict": True}, {"attention": "tiled"}, {"padding": "buckets"}], ids=str
)
def test_a_window_that_a_layer_does_not_pass_on_holds_in_every_way_of_running(
    model_type: str, options: dict[str, Any], tmp_path: Path
) -> None:
    outcome = outcome_of(model_type, tmp_path, NEAR, **options)
    assert outcome.kind == "right", outcome.detail


@pytest.fixture(scope="module")
def table() -> dict[tuple[str, str], Outcome]:
    return {}


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("reach", REACHES)
@pytest.mark.parametrize("model_type", CAUSAL_LM_TYPES)
def test_every_type_is_served_right_or_refused(
    model_type: str, reach: str, tmp_path: Path, table: dict[tuple[str, str], Outcome]
) -> None:
    outcome = table[model_type, reach] = outcome_of(model_type, tmp_path, REACHES[reach])
    assert outcome.kind in ("right", "refused") or (outcome.kind == "unbuilt" and model_type in UNBUILT), (
        f"{outcome.kind}: {outcome.detail}"
    )


@pytest.mark.slow
def test_half_of_the_types_are_served_and_most_are_built(
    table: dict[tuple[str, str], Outcome], capsys: pytest.CaptureFixture[str]
) -> None:
    if len(table) < len(REACHES) * len(CAUSAL_LM_TYPES):
        pytest.skip("reads what the test of every type has found")
    with capsys.disabled():
        print()
        for (model_type, reach), outcome in table.items():
            print(f"{model_type:26} {reach:5} {outcome.kind:8} {outcome.detail[:160]}")
        for reach in REACHES:
            kinds = Counter(outcome.kind for (_, of), outcome in table.items() if of == reach)
            print(f"{reach}: {dict(kinds)} of {len(CAUSAL_LM_TYPES)} types")
            assert kinds["right"] >= kinds.total() // 2
            assert kinds["unbuilt"] <= len(UNBUILT)
