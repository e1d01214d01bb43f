"""Templates made of all that their environment has, with hostile arguments: a text or one line, soon, in little memory.

The names are the environment's own: each filter, test and global of it, each attribute of the values that these make.
A name that jinja2 or Python adds is tried as soon as it is there. Limits: 10 s; 512 MiB of
the process that renders, and as much of this one.
"""

from __future__ import annotations

import inspect
import random
import resource
import sys
import time
from itertools import product

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.errors import TemplateError
from partita.text import template_child
from partita.text.chat_template import ChatTemplate
from partita.text.template_process import shared

SECONDS, ROOM = 10, 512 << 20
HELLO = [{"role": "user", "content": "hello"}]
ENVIRONMENT = template_child._environment()

# Of each kind a small value, whose attributes are tried, and hostile ones. n.v holds a list twice, that holds a list
# twice, and so on.
VALUES = {
    "'a'": ["'a' * 999999", "'\\n ' * 99999", "'%99999999d'", "'{:99999999}'", "'<a>' * 9999", "'www.a.b ' * 9999"],
    "[1]": ["['a'] * 9999", "[['a'] * 99] * 99", "range(99999)|list", "messages", "n.v", "[1, 2.5, 10 ** 4000]"],
    "{'a': 1}": ["{'a': 'b' * 99999, 'c': n.v}", "{}", "messages[0]"],
    "1": ["10 ** 12", "-1", "10 ** 4000"],
    "2.5": ["1e300", "-0.0"],
    "true": ["none", "nothing"],
    "(1,)": ["('a',) * 99999", "(n.v,)"],
    "'a'|safe": ["('<a>' * 99999)|safe", "('%99999999d')|safe", "('{:99999999}')|safe"],
    "'a'.encode()": ["('a ' * 99999).encode('utf-16')"],
    "range(9)": ["range(99999)"],
    "{'a': 1}.items()": ["messages[0].items()", "n.v|map('string')", "cycler(n.v)", "joiner(n.v)", "namespace(a=n.v)"],
    "[1]|map('string')": ["range(99999)|map('center', 99999)", "n.v|groupby(0)", "range(99999)|batch(9, n.v)"],
    "cycler(1)": ["cycler"],
    "joiner()": ["joiner"],
}
ARGUMENTS = [
    *("", "99999999", "-1", "true", "1e9", "10 ** 4000", "n.v", "[n.v] * 9", "messages", "range(99999)"),
    *("'x' * 99999", "99999999, 'x'", "'a', 'b' * 99999", "'a', 99999999", "'', 'b' * 99999", "'%99999999d'"),
]
LARGE = ["99999999", "'x' * 99999", "n.v", "('x' * 99999, 'y')", "-1"]


def attributes() -> list[tuple[str, list[str]]]:
    """(.name, values that have it), of every kind."""
    found: dict[str, list[str]] = {}
    for small, hostile in VALUES.items():
        value = ENVIRONMENT.compile_expression(small)(messages=HELLO)
        for name in dir(value):
            if not name.startswith("_"):
                found.setdefault(f".{name}", []).extend([small, *hostile])
    return sorted(found.items())


def keywords(function: object) -> list[str]:
    """Names of a filter's parameters behind the value."""
    parameters = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
    own = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    return [name for name in own if name not in ("environment", "eval_ctx", "context")][1:]


def uses() -> dict[str, list[str]]:
    """Expressions by the name in the environment that they use."""
    values = [value for small, hostile in VALUES.items() for value in [small, *hostile]]
    found = {
        name: [f"({value}){name}({argument})" for argument, value in product(ARGUMENTS, having)]
        for name, having in attributes()
    }
    for name, function in sorted(ENVIRONMENT.filters.items()):
        named = [f"{keyword}={value}" for keyword in keywords(function) for value in LARGE]
        found[f"|{name}"] = [f"({value})|{name}({argument})" for argument in [*ARGUMENTS, *named] for value in values]
        found[f"|map {name}"] = [f"({value})|map('{name}', 99999999)|list" for value in values]
    for name in sorted(ENVIRONMENT.tests):
        form = "({}) is " + name if name.isidentifier() else "({})|select('" + name + "', messages)|list"
        found[f"is {name}"] = [form.format(value) for value in values]
        if name.isidentifier():
            found[f"is {name}"] += [f"({value}) is {name}({argument})" for argument, value in product(LARGE, values)]
    for name in sorted(ENVIRONMENT.globals):
        found[name] = [f"{name}({argument})" for argument in [*ARGUMENTS, *LARGE, *values]]
        found[name] += [f"{name}({keyword}={value})" for keyword in ("n", "min", "max", "html") for value in LARGE]
    return found


USES = uses()


def template(expression: str, doublings: int = 40) -> str:
    doubled = f"{{% for i in range({doublings}) %}}{{% set n.v = [n.v, n.v] %}}{{% endfor %}}"
    return f"{{% set n = namespace(v='a') %}}{doubled}{{{{ {expression} }}}}"


def rendered(source: str) -> str:
    """The text, or the line that refuses it."""
    try:
        return ChatTemplate(source, seconds=0.2).render(HELLO)
    except TemplateError as error:
        return f"refused: {error}"


def attempt(source: str) -> None:
    began = time.monotonic()
    found = rendered(source)
    assert time.monotonic() - began < SECONDS, source
    if found.startswith("refused: "):
        assert found.isprintable(), source
        assert "SyntaxError" not in found, source  # of this generator's own
    child = shared()._child
    if sys.platform == "linux" and child is not None:
        assert psutil.Process(child._process.pid).rlimit(psutil.RLIMIT_AS) == (ROOM, ROOM)


NAMES = sorted(USES)


@st.composite
def hostile(draw: st.DrawFn) -> str:
    """A use of something, perhaps through a filter, and perhaps an operator."""
    expression = draw(st.sampled_from(NAMES).flatmap(lambda name: st.sampled_from(USES[name])))
    for _ in range(draw(st.integers(0, 2))):
        name, argument = draw(st.sampled_from(sorted(ENVIRONMENT.filters))), draw(st.sampled_from(ARGUMENTS))
        expression = f"({expression})|{name}({argument})"
    if operator := draw(st.sampled_from(["", "", " + ", " * ", " ** ", " ~ ", " % ", " // ", " == ", " < ", " in "])):
        small = draw(st.sampled_from(sorted(VALUES)))
        expression = f"({expression}){operator}({draw(st.sampled_from(VALUES[small]))})"
    return template(expression, draw(st.sampled_from([2, 40])))


def test_all_that_a_template_can_name_is_used():
    """So that what follows leaves nothing out."""
    for kind in (str, list, dict, tuple, int, float, bytes, range):
        assert {f".{name}" for name in dir(kind) if name[0] != "_"} <= USES.keys()
    assert {f"|{name}" for name in ENVIRONMENT.filters} <= USES.keys()
    assert {f"is {name}" for name in ENVIRONMENT.tests} <= USES.keys()
    assert set(ENVIRONMENT.globals) <= USES.keys()
    assert min(map(len, USES.values())) > 10


@pytest.mark.parametrize("part", range(8))
def test_everything_with_a_hostile_argument(part):
    for name in NAMES[part::8]:
        attempt(template(random.Random(name).choice(USES[name])))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_everything_with_many_hostile_arguments(part):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name in NAMES[part::8]:
        for expression in random.Random(name).sample(USES[name], min(60, len(USES[name]))):
            attempt(template(expression))
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 < ROOM


@given(sources=st.lists(hostile(), min_size=8, max_size=8))
@settings(max_examples=20)
def test_whatever_a_template_tries_it_is_a_text_or_one_line(sources):
    for source in sources:
        attempt(source)


@pytest.mark.slow
@given(sources=st.lists(hostile(), min_size=8, max_size=8))
@settings(max_examples=1000)
def test_whatever_many_templates_try(sources):
    for source in sources:
        attempt(source)
