from __future__ import annotations

import contextlib
import time

import jinja2
import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from trimtab.guidance.text import sandbox as template_sandbox
from trimtab.guidance.text.sandbox import TemplateLimitError, render_template

TURNS = [{"role": "user", "content": "a <b> & é"}, {"role": "assistant", "content": " c\n"}]
HONEST = {
    "blocks are trimmed": "{% for m in messages %}\n  {% if true %}"
    "\n{{ m.role }}\n  {% endif %}\n{% endfor %}\n",
    "loop controls": "{% for m in messages %}{% if loop.last %}"
    "{% break %}{% endif %}{{ m.role }}{% endfor %}",
    "macros": "{% macro f(x, n=2) %}[{{ x * n }}]{% endmacro %}"
    "{% for m in messages %}{{ f(m.role) }}{% endfor %}",
    "namespaces": "{% set s = namespace(n=0) %}{% for m in messages %}"
    "{% set s.n = s.n + 1 %}{% endfor %}{{ s.n }}",
    "json": "{{ messages | tojson }}{{ {'é': '<'} | tojson(indent=2) }}",
    "joins": "{{ 'a' ~ 1 ~ none }}{{ [1, 2] | join(', ') }}{{ 'x'.join(['1', '2']) }}{{ 'a' + 'b' }}",
    "formats": "{{ '%s-%02d' % ('a', 7) }}{{ '{:>5}|{}'.format('b', 1700000000) }}{{ '%s' | format('c') }}",
    "filters": "{{ ' x ' | trim }}{{ 'ab' | replace('a', 'c') }}{"
    "{ [3, 1] | sort | first }}{{ 'a\nb' | indent(4) }}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "arithmetic": "{{ 2 ** 10 + 7 * 6 - 5 % 3 }}{{ range(3) | list }}{{ [0] * 3 }}{{ 1.5 * 2 }}",
    "defaults": "{{ x | default(123456789) }}{{ messages | length }}{{ (7654321 | string).zfill(9) }}",
    "recursion": "{% for x in [[1, [2]]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}",
    "call": "{% macro f() %}({{ caller() }}){% endmacro %}{% call f() %}{{ messages[0].role }}{% endcall %}",
    "set": "{% set x %}{% for m in messages %}{{ m.role }}{% endfor %}{% endset %}{{ x | upper }}",
}


@pytest.mark.parametrize("name", HONEST)
def test_honest_templates_give_what_transformers_gives(name: str):
    (want,), _ = render_jinja_template([TURNS], chat_template=HONEST[name], add_generation_prompt=True)
    variables = {"messages": TURNS, "tools": None, "documents": None, "add_generation_prompt": True}
    assert render_template(HONEST[name], variables) == want


GREEDY = {
    "a loop in a loop": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "macros that call each other": "{% macro f(n) %}{% if n %}"
    "{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "a range": "{% for i in range(10 ** 9) %}{% endfor %}",
    "a filter over filters": "{% for i in range(99999) %}{{ range(99999) | sum }}{% endfor %}",
    "a product": "{{ 'a' * 10 ** 10 }}",
    "a product of a list": "{{ [0] * 10 ** 10 }}",
    "a power": "{{ 10 ** (10 ** 9) }}",
    "a width": "{{ 'a' | center(10 ** 10) }}",
    "a method's width": "{{ 'a'.ljust(10 ** 10) }}",
    "a format": "{{ '{:10000000000}'.format(1) }}",
    "a format with a width of its own": "{{ '{:{}}'.format(1, 10 ** 10) }}",
    "an old format": "{{ '%10000000000d' % 1 }}",
    "an old format with a width of its own": "{{ '%*d' % (10 ** 10, 1) }}",
    "doubling": "{% set s = namespace(x='a') %}{% for i in range(60) %}{% set s.x = s.x ~ s.x %}{% endfor %}",
    "adding": "{% set s = namespace(x='a') %}{% for i in range(60) %}{% set s.x = s.x + s.x %}{% endfor %}",
    "nesting": "{% set s = namespace(x=[1]) %}{% for i in range(60) %}"
    "{% set s.x = [s.x, s.x] %}{% endfor %}{{ s.x }}",
    "replacing": "{% set x = 'a' * 100000 %}{{ x.replace('a', x) }}",
    "the filter that replaces": "{% set x = 'a' * 100000 %}{{ x | replace('a', x) }}",
    "joining": "{% set x = 'a' * 100000 %}{{ x | join(x) }}",
    "writing": "{% set x = 'a' * 100000 %}{% for i in range(99999) %}{{ x }}{% endfor %}",
    "batches": "{{ [1] | batch(10 ** 10, 'x') | list }}",
    "slices": "{{ [1] | slice(10 ** 10) | list }}",
    "json": "{{ [1] | tojson(indent=10 ** 10) }}",
}


@pytest.mark.parametrize("name", GREEDY)
def test_a_template_that_would_take_the_machine_is_stopped(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(template_sandbox, "MAX_SECONDS", 0.2)
    start = time.thread_time()
    with pytest.raises((TemplateLimitError, OverflowError, RecursionError)):
        render_template(GREEDY[name], {"messages": TURNS})
    assert time.thread_time() - start < 2


def test_the_machine_is_out_of_a_templates_reach():
    for template in ("{{ ''.__class__ }}", "{{ messages.append(1) }}", "{{ self.__init__.__globals__ }}"):
        with contextlib.suppress(jinja2.TemplateError):
            assert render_template(template, {"messages": [{"role": "user"}]}) == ""


def test_each_rendering_has_its_own_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(template_sandbox, "MAX_SECONDS", 0.3)
    for _ in range(10):
        render_template("{% for i in range(50000) %}{% endfor %}", {})
