"""Program that compiles one grammar, to be killed where that takes too long or too much memory.

Reads {"kind", "text"} of a GrammarSpec and writes {"grammar"}, what llguidance's matcher takes, or {"error"},
with {"param"} where that is another than the spec's.
llguidance bounds its own work by counting it, but not everywhere: a large `multipleOf` takes minutes, and no
thread can be stopped within. So this runs before the server compiles the same.
"""

from __future__ import annotations

import json
import resource
import sys

CPU_SECONDS = 2
MEMORY = 2**27  # bytes; a usual grammar takes a hundredth


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    json.dump(check(**json.load(sys.stdin)), sys.stdout)


def check(kind: str, text: str) -> dict[str, str]:
    """What is written to stdout. Tried on a vocabulary of bytes: the work that has no bound is the same."""
    try:
        grammar = _read(kind, text)
        problem = _problem(grammar)
    except (ValueError, RecursionError) as error:
        problem = str(error)
    if not problem:
        return {"grammar": grammar}
    if kind == "lark_over_schemas":
        for _, param, schema in json.loads(text)["schemas"]:
            found = check("json_schema", json.dumps(schema))
            if "error" in found:
                return {**found, "param": param}
    return {"error": problem}


def _problem(grammar: str) -> str:
    import llguidance  # noqa: PLC0415 (within the limits)

    limits = llguidance.LLParserLimits(verbose_errors=False)
    matcher = llguidance.LLMatcher(llguidance.LLTokenizer("byte"), grammar, log_level=0, limits=limits)
    return str(matcher.get_error() or "")


def _read(kind: str, text: str) -> str:
    """Between the marks of JSON stand at most 32 white characters: small models write them without end. What
    a regular expression calls a digit or a letter is one of ASCII, as in JSON schemas."""
    import llguidance  # noqa: PLC0415

    matcher = llguidance.LLMatcher
    if kind == "lark_over_schemas":
        return _join(**json.loads(text))
    if kind == "json_schema":
        return matcher.grammar_from_json_schema(
            text, overrides={"whitespace_pattern": r"[ \t\n]{0,32}", "lenient": False}
        )
    if kind == "regex":
        return matcher.grammar_from_lark(f"start: /{llguidance.regex_to_lark(text, 'dw')}/")
    return llguidance.grammar_from("choice" if kind == "choice" else "grammar", text)


def _join(lark: str, schemas: list[tuple[str, str, object]]) -> str:
    """One grammar of several, each of which keeps its own `$defs`."""
    grammars: list[dict[str, object]] = [{"name": "start", "lark_grammar": lark}]
    for name, _, schema in schemas:
        [grammar] = json.loads(_read("json_schema", json.dumps(schema)))["grammars"]
        grammars.append({**grammar, "name": name})
    return json.dumps({"grammars": grammars})


if __name__ == "__main__":
    main()
