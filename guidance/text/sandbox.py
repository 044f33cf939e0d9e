"""Sandbox of chat templates: runs them as transformers does, bounded in time and in memory."""

from __future__ import annotations

import functools
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import MAX_RANGE, ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_SECONDS = 5.0  # of the rendering thread's own time
MAX_CHARACTERS = 1 << 24
MAX_BITS = 1 << 12
MAX_ITEMS = 1 << 20
MAX_MADE = 1 << 28  # characters and items of all that one rendering makes, kept or not
MAX_SLOW = 1 << 16  # characters for filters that are slow, which no chat template is known to use
_TEXTS_FROM = frozenset({"string", "tojson", "pprint", "join", "urlencode", "format", "replace"})
_COMPARING = frozenset({"sort", "unique", "groupby", "min", "max", "sum"})
_SLOW = frozenset({"wordwrap", "urlize", "striptags", "wordcount", "title", "pprint", "xmlattr"})
_NEVER = frozenset({"translate", "expandtabs"})  # of texts: a character becomes any number of them
_MAY_NAME_ANY_NUMBER = frozenset({"default", "d", "int", "float"})
_WIDE = re.compile(r"\d{6,}|\{[^{}]*:[^{}]*\{|%[^a-zA-Z%]*\*")


class TemplateLimitError(jinja2.TemplateRuntimeError):
    """A template that would take too long, or make too long a text."""


@functools.lru_cache(maxsize=16)
def compile_template(text: str) -> jinja2.Template:
    """Raises what a template that is none makes Jinja raise."""
    return _environment().from_string(text)


def render_template(text: str, variables: Mapping[str, Any]) -> str:
    """The rendered template. Raises what is wrong with it: jinja2.TemplateError, or any error of Python's."""
    template = compile_template(text)
    _clock.start()
    try:
        return template.render(variables)
    finally:
        _clock.stop()


class _Clock(threading.local):
    """How long the thread that asks may go on, and how much it has made."""

    deadline = float("inf")
    made = 0

    def start(self) -> None:
        self.deadline, self.made = time.thread_time() + MAX_SECONDS, 0

    def make(self, length: int) -> None:
        """Raises TemplateLimitError where all that was made, with so much more, is too much."""
        self.made += length
        if self.made > MAX_MADE:
            raise TemplateLimitError(f"it makes more than {MAX_MADE} characters, all counted")

    def stop(self) -> None:
        self.deadline = float("inf")

    def check(self) -> str:
        """Raises TemplateLimitError when time is up."""
        if time.thread_time() > self.deadline:
            raise TemplateLimitError(f"it takes longer than {MAX_SECONDS:g} s")
        return ""


_clock = _Clock()


class _Code(CodeGenerator):
    """Joins texts by the environment's own means."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self.write("environment.join(")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write(")")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:  # noqa: N802
        if not isinstance(node.arg, nodes.Slice):
            super().visit_Getitem(node, frame)
            return
        self.write("environment.cut(")
        self.visit(node.node, frame)
        for bound in (node.arg.start, node.arg.stop, node.arg.step):
            self.write(", ")
            self.write("None") if bound is None else self.visit(bound, frame)
        self.write(")")


class _Sandbox(ImmutableSandboxedEnvironment):
    """Every loop and call looks at the clock, and what would make a long text is asked for its length."""

    code_generator_class = _Code
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.finalize = _bounded_value
        self.globals.pop("lipsum")
        self.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
        self.filters["tojson"] = _to_json
        self.filters = {name: _bounded_filter(name, call) for name, call in self.filters.items()}
        self.filters[_COMPARED] = _compared
        tests: dict[str, Any] = self.tests
        self.tests = {name: _bounded_test(call) for name, call in tests.items()}

    def concat(self, parts: Iterable[str]) -> str:
        """In place of "".join: of whatever the template writes."""
        kept, length = [], 0
        for part in parts:
            kept.append(part)
            length += len(part)
            _check_length(length)
            _clock.make(len(part))
        return "".join(kept)

    def join(self, *parts: object) -> str:
        """In place of the operator ~."""
        return self.concat(str(_bounded_value(part)) for part in parts)

    def cut(self, value: Any, *bounds: Any) -> Any:
        """In place of value[start:stop:step]."""
        part = value[slice(*bounds)]
        _clock.make(len(part) if hasattr(part, "__len__") else 1)
        return part

    @property
    def tick(self) -> str:
        """What every round of a loop reads."""
        return _clock.check()

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """What is called in place of a text's own `format`."""
        call = super().wrap_str_format(value)
        if call is None:
            return None
        text = value.__self__
        _check_format(text)

        def bounded(*args: Any, **kwargs: Any) -> str:
            _make(len(text) + text.count("{") * len(str(_bounded_value([*args, *kwargs.values()]))))
            return call(*args, **kwargs)

        return bounded

    def call(self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        _clock.check()
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str | bytes | int | float):
            name = getattr(__obj, "__name__", "")
            if name == "join" and args and not hasattr(args[0], "__len__"):
                args = ([*args[0]], *args[1:])
            _check_method(owner, name, (*args, *kwargs.values()))
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _check_operands(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        bounded: nodes.Template = _Ticks().visit(super()._parse(source, name, filename))
        bounded.set_environment(self)
        return bounded


class _Ticks(NodeTransformer):
    """Makes a template look at the clock wherever it may go round again."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 (Jinja's name)
        return self._ticking(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802
        return self._ticking(node)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        sides: list[nodes.Compare | nodes.Operand] = [node, *node.ops]
        for side in sides:
            side.expr = nodes.Filter(side.expr, _COMPARED, [], [], None, None, lineno=node.lineno)
        return node

    def _ticking(self, node: nodes.For | nodes.Macro) -> nodes.Node:
        self.generic_visit(node)
        tick = nodes.EnvironmentAttribute("tick", lineno=node.lineno)
        node.body.insert(0, nodes.ExprStmt(tick, lineno=node.lineno))
        return node


class _Generation(Extension):
    """{% generation %} … {% endgeneration %}, which marks the assistant's words for training elsewhere."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's way)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


@functools.cache
def _environment() -> _Sandbox:
    return _Sandbox()


def _raise_exception(message: object) -> None:
    raise jinja2.TemplateError(str(message))


def _strftime_now(format: str) -> str:
    _check_length(len(format) * 256)
    return datetime.now().strftime(format)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Without the escapes for HTML that Jinja's own has."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


_COMPARED = "trimtab_compared"


def _compared(value: Any) -> Any:
    """What is compared: lists of shared lists take longer than they are long."""
    return _bounded_value(value) if isinstance(value, list | tuple | Mapping) else value


def _bounded_test(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        _clock.check()
        for value in args:
            _compared(value)
        return call(*args, **kwargs)

    return bounded


def _bounded_filter(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        _clock.check()
        takes_context = hasattr(call, "jinja_pass_arg")
        value, *options = args[1:] if takes_context else args
        options += kwargs.values()
        if name not in _MAY_NAME_ANY_NUMBER:
            _check_numbers(options)
        if name == "join" and not hasattr(value, "__len__"):
            value = [*value]
            args = (args[0], value, *args[2:]) if takes_context else (value, *args[1:])
        if hasattr(value, "__len__"):
            _clock.make(len(value))
        if name in _TEXTS_FROM or name in _COMPARING:
            _bounded_value(value)
        if name in ("join", "replace", "format", "indent"):
            _check_made(name, value, options)
        if name in _SLOW and len(str(_bounded_value(value))) > MAX_SLOW:
            raise TemplateLimitError(f"it gives {name} more than {MAX_SLOW} characters")
        if name == "sum" and any(isinstance(option, list | tuple) for option in options):
            raise TemplateLimitError("it adds lists up")
        return call(*args, **kwargs)

    return bounded


def _check_method(owner: object, name: str, arguments: tuple[Any, ...]) -> None:
    _check_numbers(arguments)
    if name in _NEVER:
        raise TemplateLimitError(f"it calls {name}")
    _clock.make(len(owner) if isinstance(owner, str | bytes) else 1)
    if name in ("join", "replace"):
        first = arguments[0] if arguments else ()
        _check_made(name, *((first, [owner]) if name == "join" else (owner, [*arguments])))


def _check_made(kind: str, value: Any, options: list[Any]) -> None:
    """Of a text put together from others."""
    if kind == "format":
        _check_formatted(value, tuple(options))
    elif kind == "replace" and len(options) >= 2:
        text, old, new = str(value), str(options[0]), str(options[1])
        _make(len(text) + text.count(old) * len(new))
    elif kind == "join" and options and hasattr(value, "__len__"):
        _make(len(value) * len(str(options[0])))
    elif kind == "indent":
        width = options[0] if options else 4
        text = str(value)
        _make(len(text) + (text.count("\n") + 1) * (width if isinstance(width, int) else len(str(width))))


def _check_formatted(text: Any, values: Any) -> None:
    if not isinstance(text, str):
        return
    _check_format(text)
    _make(len(text) + text.count("%") * len(str(_bounded_value(values))))


def _check_format(text: str) -> None:
    if _WIDE.search(text):
        raise TemplateLimitError("it formats by a width that is too large, or that it works out")


def _check_operands(operator: str, left: Any, right: Any) -> None:
    if operator == "%":
        _check_formatted(left, right)
    elif isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length(), right.bit_length()
        made = {"*": sum(bits), "**": bits[0] * max(right, 0), "+": max(bits)}[operator]
        if made > MAX_BITS:
            raise TemplateLimitError(f"it makes a number of more than {MAX_BITS} bits")
    elif operator == "*":
        times, value = (left, right) if isinstance(left, int) else (right, left)
        if isinstance(times, int) and hasattr(value, "__len__"):
            _make(len(value) * max(times, 0))
    elif operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
        _make(len(left) + len(right))


def _make(length: int) -> None:
    """Of a text or list that is about to be."""
    _check_length(length)
    _clock.make(length)


def _check_numbers(values: Iterable[Any]) -> None:
    """Of options that say how wide or how many."""
    if any(isinstance(value, int) and abs(value) > MAX_RANGE for value in values):
        raise TemplateLimitError(f"it gives a number beyond {MAX_RANGE} as a width or count")


def _check_length(length: int) -> None:
    if length > MAX_CHARACTERS:
        raise TemplateLimitError(f"it makes a text of more than {MAX_CHARACTERS} characters")


def _bounded_value(value: Any) -> Any:
    """The value, whose text is not too long: lists may hold the same list many times over."""
    waiting, length, num_items = [value], 0, 0
    while waiting:
        item = waiting.pop()
        num_items += 1
        if num_items > MAX_ITEMS:
            raise TemplateLimitError(f"it writes a list of more than {MAX_ITEMS} items")
        length += len(item) if isinstance(item, str) else 1
        _check_length(length)
        if isinstance(item, Mapping):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple | set | frozenset):
            waiting += item
    return value
