"""Text or chat: what prompts that are strings become, decided once for a tokenizer and the files of a run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from trimtab.guidance.errors import DataError, PolicyError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Form = Literal["chat", "text"]
Rows = Literal["auto", "chat", "text"]
"""chat: a string is one message of the user, and the chat template renders it, as /v1/chat/completions does.
text: a string is completed as it is, as /v1/completions does. auto: chat where there is a template."""

METADATA_KEY = b"trimtab"
"""Of a Parquet file's schema: what made the rows, as JSON; its `rows` is a Form."""
OTHER: dict[Form, Form] = {"chat": "text", "text": "chat"}
_INSTEAD: dict[Form, str] = {
    "chat": "ask it by /v1/completions (--rows text)",
    "text": "ask it by /v1/chat/completions (--rows chat)",
}


def form_of(tokenizer: PreTrainedTokenizerBase, rows: Rows, files: Iterable[Path] = ()) -> Form:
    """What `rows` comes to. files: of replies, which may say as what they were sampled: auto follows them.

    Raises:
        PolicyError: chat, and the tokenizer has no chat template.
        DataError: files that were sampled otherwise than is asked, or each in another way.
    """
    recorded = {said: path for path in files if (said := recorded_form(path)) is not None}
    if len(recorded) > 1:
        raise DataError(
            f"{recorded['chat']} was sampled from chats and {recorded['text']} from texts: train on one kind"
        )
    if rows != "auto":
        for said, path in recorded.items():
            if said != rows:
                raise DataError(
                    f"{path} was sampled with --rows {said}: leave --rows {rows} out, or sample anew"
                )
    by_template: Form = "chat" if tokenizer.chat_template else "text"
    form: Form = next(iter(recorded), by_template) if rows == "auto" else rows
    if form == "chat" and not tokenizer.chat_template:
        raise PolicyError(
            "rows are chats, and the tokenizer has no chat template: give it one, or --rows text"
        )
    return form


def recorded_form(path: Path) -> Form | None:
    """As what the rows of a file of ours were sampled; None where it does not say, or is none of ours."""
    import pyarrow as pa  # noqa: PLC0415 (not needed to serve)

    schema, said = made_by(path)
    if said.get("rows") in OTHER:
        form: Form = said["rows"]
        return form
    if not said or "prompt" not in schema.names:
        return None
    # Written before there was a choice: strings were completed as they are.
    return "text" if pa.types.is_string(schema.field("prompt").type) else "chat"


def made_by(path: Path) -> tuple[Any, dict[str, Any]]:
    """The schema of a Parquet file, and what it says made its rows; an empty schema and nothing of another
    file, or of one that cannot be read: whoever reads the rows says what is wrong."""
    import pyarrow as pa  # noqa: PLC0415 (not needed to serve)
    import pyarrow.parquet as pq  # noqa: PLC0415

    nothing: tuple[Any, dict[str, Any]] = pa.schema([]), {}
    if path.suffix != ".parquet" or not path.is_file():
        return nothing
    try:
        schema = pq.read_schema(path)
        said = made_by_of(schema)
    except (pa.ArrowException, OSError, ValueError):
        return nothing
    return schema, said if isinstance(said, dict) else {}


def made_by_of(schema: Any) -> Any:
    """What a Parquet schema says made its rows. Raises ValueError where that is no JSON."""
    return json.loads((schema.metadata or {}).get(METADATA_KEY, b"{}"))


def mismatch(name: str, trained: str | None, used: Rows) -> str | None:
    """One line where a head that was trained on rows of one form meets prompts of the other."""
    if trained is None or used == "auto" or trained == used:  # noqa: PLR1714 (narrows the type)
        return None
    ways = {"chat": "chats, through the chat template", "text": "texts, completed as they are"}
    return (
        f"head {name} was trained on {ways[OTHER[used]]}, and prompts are now {ways[used]}: "
        f"its scores are off; train it with --rows {used}, or {_INSTEAD[used]}"
    )


class Trained(Protocol):
    """A head's manifest, as far as its name and the form of its rows go."""

    @property
    def name(self) -> str: ...

    @property
    def rows(self) -> str | None: ...


def mismatches(heads: Iterable[Trained], used: Rows) -> list[str]:
    """A line for each head that was trained on rows of the other form."""
    found = (mismatch(head.name, head.rows, used) for head in heads)
    return [problem for problem in found if problem is not None]
