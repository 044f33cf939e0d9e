"""Program that compiles one grammar, to be killed where that takes too long or too much memory.

Reads {"kind", "text"} of a GrammarSpec and writes {"grammar"}, what llguidance's matcher takes, or {"error"}.
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
    import llguidance  # noqa: PLC0415 (within the limits)

    try:
        grammar = _read(kind, text)
    except (ValueError, RecursionError) as error:
        return {"error": str(error)}
    limits = llguidance.LLParserLimits(verbose_errors=False)
    matcher = llguidance.LLMatcher(llguidance.LLTokenizer("byte"), grammar, log_level=0, limits=limits)
    problem = matcher.get_error()
    return {"error": problem} if problem else {"grammar": grammar}


def _read(kind: str, text: str) -> str:
    """Between the marks of JSON stand at most 32 white characters: small models write them without end. What
    a regular expression calls a digit or a letter is one of ASCII, as in JSON schemas."""
    import llguidance  # noqa: PLC0415

    matcher = llguidance.LLMatcher
    if kind == "json_schema":
        return matcher.grammar_from_json_schema(
            text, overrides={"whitespace_pattern": r"[ \t\n]{0,32}", "lenient": False}
        )
    if kind == "regex":
        return matcher.grammar_from_lark(f"start: /{llguidance.regex_to_lark(text, 'dw')}/")
    return llguidance.grammar_from("choice" if kind == "choice" else "grammar", text)


if __name__ == "__main__":
    main()
