"""Generation requests: what chats and completions share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from trimtab.guidance.ranges import shown
from trimtab.server.api import neutral
from trimtab.server.api.schemas.guidance import GuidanceFields
from trimtab.server.api.schemas.strict import StrictModel, UnicodeText, at_most
from trimtab.server.api.schemas.structured import Choices, JsonSchema, ResponseFormat, StructuredOutputs
from trimtab.server.engine.request import MAX_BAD_WORDS, MAX_LOGIT_BIAS, MAX_STOPS, InvalidRequestError

MAX_SALT = 256


class StreamOptions(StrictModel):
    """include_usage: a last chunk with the token counts. continuous_usage_stats: those so far in every chunk
    before it, too."""

    NEUTRAL = neutral.STREAM_OPTIONS

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class MajorityFields(StrictModel):
    """Self-consistency: how a reply's answer is found, and whether votes are weighted by reward."""

    pattern: UnicodeText
    weighted: bool | None = None


class RejectionFields(StrictModel):
    """Speculative rejection: every so many tokens the better share of the replies goes on."""

    every: int
    share: float | None = None


def _check_salt(salt: str) -> str:
    if not 0 < len(salt) <= MAX_SALT:
        raise ValueError(f"must have 1…{MAX_SALT} characters, got {len(salt)}")
    return salt


CacheSalt = Annotated[UnicodeText, AfterValidator(_check_salt)]
"""Only requests with the same share cached prefixes, as in vLLM."""
Texts = Annotated[list[UnicodeText], Field(fail_fast=True)]
Ids = Annotated[list[int], Field(fail_fast=True)]
StopIds = Annotated[Ids | None, at_most(MAX_STOPS, "tokens")]


def _check_biases(biases: Any) -> Any:
    """Up to the first that is none."""
    for key, bias in biases.items() if isinstance(biases, dict) else ():
        if isinstance(bias, bool) or not isinstance(bias, int | float):
            raise ValueError(f"{shown(key)} must be given a number, got {shown(bias)}")
    return biases


def _as_stop_list(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


Stops = Annotated[Texts | None, BeforeValidator(_as_stop_list), at_most(MAX_STOPS, "strings")]
Biases = Annotated[dict[str, float] | None, BeforeValidator(_check_biases), at_most(MAX_LOGIT_BIAS, "tokens")]


class GenerationRequest(StrictModel):
    """What chat and completions share.

    `model` may be left out: a server has one. `guided_…` are vLLM's older names of what `structured_outputs`
    holds.
    """

    NEUTRAL = neutral.GENERATION
    OFF = neutral.OFF

    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    n: int | None = None
    best_of: int | None = None
    majority: MajorityFields | None = None
    speculative_rejection: RejectionFields | None = None
    max_tokens: int | None = None
    stop: Stops = None
    seed: int | None = None
    ignore_eos: bool | None = None
    logit_bias: Biases = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    guidance: GuidanceFields | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    prompt_logprobs: int | None = None
    truncate_prompt_tokens: int | None = None
    min_tokens: int | None = None
    stop_token_ids: StopIds = None
    include_stop_str_in_output: bool | None = None
    bad_words: Annotated[Texts | None, at_most(MAX_BAD_WORDS, "words")] = None
    cache_salt: CacheSalt | None = None
    guided_json: JsonSchema | None = None
    guided_regex: UnicodeText | None = None
    guided_choice: Choices | None = None
    guided_grammar: UnicodeText | None = None

    @property
    def guided(self) -> dict[str, Any]:
        """By the names of `structured_outputs`, what is given under vLLM's older ones."""
        every = {
            "json": self.guided_json,
            "regex": self.guided_regex,
            "choice": self.guided_choice,
            "grammar": self.guided_grammar,
        }
        return {name: value for name, value in every.items() if value is not None}

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> GenerationRequest:
        if self.wants_usage_chunk and not self.stream:
            raise InvalidRequestError("is only allowed with stream: true", "stream_options")
        return self

    @model_validator(mode="after")
    def _prompt_logprobs_come_with_a_whole_reply(self) -> GenerationRequest:
        if self.prompt_logprobs is not None and self.stream:
            raise InvalidRequestError("is not told in streams; leave one of them out", "prompt_logprobs")
        return self

    @property
    def engine_fields(self) -> Mapping[str, str]:
        """Fields of the engine's request that have another name here."""
        return {}

    @property
    def wants_usage_chunk(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def wants_usage_in_chunks(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.continuous_usage_stats)
