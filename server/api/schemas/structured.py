"""Structured outputs, in each of their spellings."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from trimtab.server.api import neutral
from trimtab.server.api.schemas.strict import StrictModel, UnicodeText, check_unicode
from trimtab.server.engine.request import InvalidRequestError


class JsonSchemaFormat(StrictModel):
    """`response_format.json_schema`. strict: the reply keeps to the schema whether it is asked to or not."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(StrictModel):
    """OpenAI's `response_format`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _a_schema_where_there_should_be_one(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            problem = "is required" if self.json_schema is None else "is only allowed with type json_schema"
            raise InvalidRequestError(problem, "json_schema")
        return self


Choices = Annotated[list[UnicodeText], Field(min_length=1, fail_fast=True)]


def _check_schema(schema: Any) -> Any:
    if not isinstance(schema, dict | str):
        raise ValueError("must be a JSON schema, as an object or as its text")
    return check_unicode(schema) if isinstance(schema, str) else schema


JsonSchema = Annotated[Any, AfterValidator(_check_schema)]


class StructuredOutputs(StrictModel):
    """vLLM's `structured_outputs`: one of its keys."""

    NEUTRAL = neutral.STRUCTURED_OUTPUTS

    json_: Annotated[JsonSchema | None, Field(alias="json")] = None
    regex: UnicodeText | None = None
    choice: Choices | None = None
    grammar: UnicodeText | None = None
    json_object: bool | None = None

    @property
    def given(self) -> dict[str, Any]:
        """By vLLM's names."""
        every = {"json": self.json_, "regex": self.regex, "choice": self.choice, "grammar": self.grammar}
        return {name: value for name, value in every.items() if value is not None}
