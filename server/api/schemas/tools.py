"""Tools that a chat may call, and the choice between them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from trimtab.guidance.ranges import shown
from trimtab.server.api.schemas.strict import StrictModel, UnicodeText
from trimtab.server.engine.request import InvalidRequestError

MAX_TOOLS = 128


ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class FunctionFields(StrictModel):
    """parameters: the JSON schema of the arguments, an object's; without it there are none. strict: calls
    keep to it also where they are not demanded."""

    name: ToolName
    description: UnicodeText | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _arguments_are_an_object(self) -> FunctionFields:
        kind = (self.parameters or {}).get("type", "object")
        if kind != "object":
            raise InvalidRequestError(f'must be "object", got {shown(kind)}', "parameters.type")
        return self


_OTHER_PROPERTIES = {
    *("additionalProperties", "unevaluatedProperties", "patternProperties"),
    *("$ref", "allOf", "anyOf", "oneOf", "if", "dependentSchemas"),
}
"""Keywords of a schema that may name more properties, or say what is done with others."""


class ToolFields(StrictModel):
    """A tool that may be called."""

    type: Literal["function"]
    function: FunctionFields

    @property
    def schema_(self) -> dict[str, Any]:
        """Of the arguments. No tool takes what its properties do not name, though a schema that says nothing
        of others allows them."""
        given = self.function.parameters
        schema = {"type": "object", **({"properties": {}} if given is None else given)}
        is_plain = "properties" in schema and not schema.keys() & _OTHER_PROPERTIES
        return {**schema, "additionalProperties": False} if is_plain else schema

    @property
    def templated(self) -> dict[str, Any]:
        """As a chat template takes it; many write the description whether there is one or not."""
        function = {"name": self.function.name, "description": self.function.description or ""}
        parameters = self.function.parameters or {"type": "object", "properties": {}}
        return {"type": "function", "function": {**function, "parameters": parameters}}


class ToolByName(StrictModel):
    """A tool's name."""

    name: UnicodeText


class ToolChoice(StrictModel):
    """A word alone, or function: the one tool that a reply must call."""

    type: Literal["none", "auto", "required", "function"]
    function: ToolByName | None = None

    @property
    def demands(self) -> bool:
        return self.type in ("required", "function")

    @model_validator(mode="after")
    def _a_function_where_there_should_be_one(self) -> ToolChoice:
        if (self.type == "function") != (self.function is not None):
            problem = "is required" if self.function is None else "is only allowed with type function"
            raise InvalidRequestError(problem, "function")
        return self


ToolWord = Literal["none", "auto", "required"]


def as_tool_choice(choice: Any) -> Any:
    if isinstance(choice, str) and choice not in get_args(ToolWord):
        what = 'must be "none", "auto", "required", or {"type": "function", "function": {"name": …}}'
        raise ValueError(f"{what}, got {shown(choice)}")
    return {"type": choice} if isinstance(choice, str) else choice


ToolList = Annotated[list[ToolFields], Field(fail_fast=True)]
