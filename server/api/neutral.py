"""Neutral fields: tell what clients of OpenAI's and vLLM's servers send that asks for nothing here, so that
no request fails by it.

A table for each kind of object. Null asks for nothing anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches

ANYTHING: tuple[object, ...] = ("anything",)
"""Of labels and hints: by their definitions no reply depends on them."""

Harmless = Mapping[str, tuple[object, ...]]
"""Fields that we do not implement, with the values that ask for nothing; without any, all are demands."""

LABELS: Harmless = {
    # OpenAI's
    "metadata": ANYTHING,
    "prediction": ANYTHING,
    "prompt_cache_key": ANYTHING,
    "prompt_cache_options": ANYTHING,
    "prompt_cache_retention": ANYTHING,
    "safety_identifier": ANYTHING,
    "service_tier": ANYTHING,
    "store": ANYTHING,
    "user": ANYTHING,
    "verbosity": ANYTHING,
    # peers'
    "cache_prompt": ANYTHING,
    "guided_decoding_backend": ANYTHING,
    "request_id": ANYTHING,
}

GENERATION: Harmless = {
    **LABELS,
    # peers' demands, each with its neutral value
    "allowed_token_ids": (),
    "dry_multiplier": (0,),
    "early_stopping": (False,),
    "guided_whitespace_pattern": (),
    "kv_transfer_params": ({},),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "mirostat": (0,),
    "mm_processor_kwargs": ({},),
    "priority": (0,),
    "repeat_penalty": (1,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "structural_tag": (),
    "tfs_z": (1,),
    "top_a": (0,),
    "typical_p": (1,),
    "use_beam_search": (False,),
    "vllm_xargs": ({},),
    "xtc_probability": (0,),
}

CHAT: Harmless = {
    **GENERATION,
    "add_special_tokens": (False,),
    "audio": (),
    "chat_template": (),
    "documents": ([],),
    "echo": (False,),
    "function_call": ("none",),
    "functions": ([],),
    "include_reasoning": (True,),
    "modalities": (["text"],),
    "moderation": (),
    "web_search_options": (),
}

RESPONSE: Harmless = {
    **GENERATION,
    "access_programs": (),
    "background": (False,),
    "background_options": (),
    "best_of": (1,),
    "context_management": ([],),
    "conversation": (),
    "image": ANYTHING,  # of how images are read
    "logprobs": (False,),
    "max_tool_calls": ANYTHING,  # of hosted tools
    "moderation": (),
    "n": (1,),
    "previous_response_id": (),
    "prompt": (),
    "truncation": ("disabled",),
}

RESPONSE_ITEM: Harmless = {
    "annotations": ANYTHING,
    "cache_control": ANYTHING,
    "caller": ({"type": "direct"},),
    "encrypted_content": ANYTHING,  # of another server's reasoning
    "id": ANYTHING,
    "namespace": (),
    "phase": ANYTHING,
    "status": ANYTHING,
    "summary": ANYTHING,
}

TOOL: Harmless = {
    "allowed_callers": (["direct"],),
    "cache_control": ANYTHING,
    "defer_loading": (False,),
    "output_schema": ANYTHING,
}

RESPONSE_TEXT: Harmless = {"verbosity": ANYTHING}

REASONING: Harmless = {"generate_summary": (), "summary": ()}

COMPLETION: Harmless = {
    **GENERATION,
    "add_special_tokens": (True,),
    "prompt_embeds": (),
    "suffix": ("",),
}

MESSAGE: Harmless = {
    "annotations": ANYTHING,
    "audio": (),
    "cache_control": ANYTHING,
    "function_call": (),
    "name": ANYTHING,
    "parsed": ANYTHING,
    "provider_specific_fields": ANYTHING,
    "refusal": ("",),
}

TEXT_PART: Harmless = {
    "annotations": ANYTHING,
    "cache_control": ANYTHING,
    "file": (),
    "image_url": (),
    "input_audio": (),
    "logprobs": ANYTHING,
    "prompt_cache_breakpoint": ANYTHING,
    "video_url": (),
}

CALL: Harmless = {
    "cache_control": ANYTHING,
    "extra_content": ANYTHING,  # of another server's reasoning
    "index": ANYTHING,  # of a stream's pieces
    "provider_specific_fields": ANYTHING,
}

CALLED: Harmless = {"parsed_arguments": ANYTHING}

STREAM_OPTIONS: Harmless = {"include_obfuscation": (False,)}

STRUCTURED_OUTPUTS: Harmless = {
    "disable_additional_properties": (False,),
    "disable_any_whitespace": (False,),
    "structural_tag": (),
    "whitespace_pattern": (),
}

OFF: Mapping[str, tuple[object, object]] = {"top_k": (-1, 0), "logprobs": (False, None)}
"""Of fields that we implement, how peers write that they are off, and how we do."""

_LONGEST_NAME = 64  # characters that are compared


def asks_for_nothing(value: object, harmless: tuple[object, ...]) -> bool:
    """1 and 1.0 are the same, and neither is True."""
    if harmless is ANYTHING:
        return True
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in harmless)


def refusal(harmless: tuple[object, ...]) -> str:
    """What is said of a demand that is not honoured."""
    allowed = " or ".join(_as_json(value) for value in harmless)
    return f"is not supported; leave it out{f', or send {allowed}' if allowed else ''}"


def _as_json(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def unknown(name: str, known: list[str]) -> str:
    """What is said of a field that nobody knows: the nearest one that is known, if any is near."""
    nearest = get_close_matches(name[:_LONGEST_NAME], known, n=1)
    return f"unknown field; {f'did you mean {nearest[0]}?' if nearest else 'remove it'}"
