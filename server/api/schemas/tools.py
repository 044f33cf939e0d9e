"""Tools that a chat may call, and the choice between them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from trimtab.guidance.ranges import shown
from trimtab.server.api import neutral
from trimtab.server.api.schemas.strict import StrictModel, UnicodeText, at_most
from trimtab.server.engine.request import InvalidRequestError

MAX_TOOLS = 128


ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class FunctionFields(StrictModel):
    """parameters: the JSON schema of the arguments, an object's; without it there are none. strict: calls
    keep to it also where they are not demanded."""

    NEUTRAL = neutral.TOOL

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

    NEUTRAL = neutral.TOOL

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


class AllowedTool(StrictModel):
    """One of them."""

    type: Literal["function"]
    function: ToolByName


class AllowedTools(StrictModel):
    """mode: whether one of them has to be called."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[AllowedTool], Field(min_length=1, fail_fast=True), at_most(MAX_TOOLS, "tools")]


class ToolChoice(StrictModel):
    """A word alone; function: the one tool that a reply must call; allowed_tools: those that it may call."""

    type: Literal["none", "auto", "required", "function", "allowed_tools"]
    function: ToolByName | None = None
    allowed_tools: AllowedTools | None = None

    @property
    def demands(self) -> bool:
        is_required = self.allowed_tools is not None and self.allowed_tools.mode == "required"
        return is_required or self.type in ("required", "function")

    @property
    def names(self) -> dict[str, str] | None:
        """Tools that may be called, each with the field that names it; None for all that there are."""
        if self.function is not None:
            return {self.function.name: "function.name"}
        if self.allowed_tools is None:
            return None
        named = (tool.function.name for tool in self.allowed_tools.tools)
        return {name: f"allowed_tools.tools[{at}].function.name" for at, name in enumerate(named)}

    @model_validator(mode="after")
    def _what_its_type_has(self) -> ToolChoice:
        for name in ("function", "allowed_tools"):
            is_given = getattr(self, name) is not None
            if (self.type == name) != is_given:
                raise InvalidRequestError(
                    f"is only allowed with type {name}" if is_given else "is required", name
                )
        return self


ToolWord = Literal["none", "auto", "required"]


def as_tool_choice(choice: Any) -> Any:
    if isinstance(choice, str) and choice not in get_args(ToolWord):
        what = 'must be "none", "auto", "required", or {"type": "function", "function": {"name": …}}'
        raise ValueError(f"{what}, got {shown(choice)}")
    return {"type": choice} if isinstance(choice, str) else choice


ToolList = Annotated[list[ToolFields], Field(fail_fast=True)]
