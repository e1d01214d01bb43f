"""Chat templates: messages to text to token ids. Knows no model; a template is a stranger's program.

Invariants: a template reads and changes nothing but its own variables, ends within a time limit, and fails as one
TemplateError. A control token's literal inside a message is text in the ids; only the template places control tokens.

Time limit: Jinja has no `while`, yet nested loops, recursion and filters over long ranges run for ages. So compiling
and rendering happen in a thread of their own; past the deadline the caller gets its error at once, and the thread is
told to stop by an exception raised inside it. (A clock check between rendered chunks is never reached by a loop that
writes nothing, and signals reach the main thread only.) One uninterruptible step, such as `"a" * 10**12`, could still
hold the interpreter: the operators that grow values are intercepted and bounded, and methods that pad are refused.
"""

from __future__ import annotations

import ctypes
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from .errors import TemplateError
from .tokenizer import Tokenizer

MAX_SOURCE = 1 << 20  # characters; the longest published templates have about 50,000
MAX_TEXT = 1 << 24  # characters or items that one value or the rendered text may have
SECONDS = 5.0
_RANGE = 100_000  # longest range() in a template

Message = Mapping[str, Any]
_T = TypeVar("_T")


class _Stop(BaseException):
    """Raised inside a rendering thread that ran out of time; no `except Exception` catches it."""


class ChatTemplate:
    """A compiled chat template in the dialect of the Hub (Jinja with `raise_exception`, `strftime_now`, `tojson`).

    source: the template's text. bos_token, eos_token: the literals that it may write. seconds: limit for compiling and
    for each rendering. Raises TemplateError for a source that is too long or does not compile.
    """

    def __init__(self, source: str, *, bos_token: str = "", eos_token: str = "", seconds: float = SECONDS) -> None:
        if len(source) > MAX_SOURCE:
            raise TemplateError(f"chat template: {len(source)} characters, more than {MAX_SOURCE} are not accepted")
        self.source = source
        self._seconds = seconds
        self._variables = {"bos_token": bos_token, "eos_token": eos_token}
        self._compiled = _within(seconds, lambda: _environment().from_string(source))

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> ChatTemplate:
        """The tokenizer's own template; TemplateError for a base model, which has none."""
        if tokenizer.chat_template is None:
            raise TemplateError(_NO_TEMPLATE)
        return cls(tokenizer.chat_template, bos_token=tokenizer.bos_token, eos_token=tokenizer.eos_token)

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Any] | None = None,
        **variables: Any,
    ) -> str:
        """Text of a conversation. `variables` reach the template under their names (`enable_thinking=False`)."""
        given = {"documents": None, **self._variables, **variables}
        given |= {"messages": list(messages), "tools": tools, "add_generation_prompt": add_generation_prompt}

        def render() -> str:
            return "".join(_bounded(self._compiled.generate(**given)))

        return _within(self._seconds, render)


def encode_chat(
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    **variables: Any,
) -> list[int]:
    """Token ids of a conversation, with exactly one BOS where the model was trained with one.

    Literals of control tokens in messages, tools or variables (a user may type `<|im_end|>`) stay text: each stands as
    one private character while the template runs, and is encoded apart afterwards. Without such literals the ids are
    those of the rendered text as a whole.
    """
    parts = chat_parts(tokenizer, template, messages, add_generation_prompt=add_generation_prompt, **variables)
    return one_bos(tokenizer, tokenizer.encode_parts(parts))


def chat_parts(
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    **variables: Any,
) -> list[tuple[str, bool]]:
    """The rendered text of a conversation as (text, may control tokens be read from it?) parts."""
    chat = MarkedChat(tokenizer, template, messages, **variables)
    return chat.parts(chat.render(add_generation_prompt=add_generation_prompt))


class MarkedChat:
    """A conversation to be rendered several times, with each literal of a control token that its messages, tools or
    variables hold as one private character.

    The characters are the same in every rendering, so that renderings can be compared and cut anywhere before `parts`
    says what may be read as control tokens. begin, end: the characters around what `{% generation %}` marks, ""
    where the template has no such marks.
    """

    def __init__(
        self, tokenizer: Tokenizer, template: ChatTemplate | None, messages: Sequence[Message], **variables: Any
    ) -> None:
        if template is None:
            raise TemplateError(_NO_TEMPLATE)
        data = {"messages": list(messages), **variables}
        literals = tokenizer.control_pattern
        found = {name for text in _strings(data) for name in literals.findall(text)}
        around = [_BEGIN, _END] if "endgeneration" in template.source else []
        marks = _private_characters([*sorted(found), *around], [template.source, *_strings(data)])
        self.begin, self.end = marks.pop(_BEGIN, ""), marks.pop(_END, "")
        if marks:
            data = _replaced(data, lambda text: literals.sub(lambda match: marks[match[0]], text))
        self._names = {mark: name for name, mark in marks.items()}
        self._template, self._messages, self._variables = template, data.pop("messages"), data

    def render(self, count: int | None = None, *, add_generation_prompt: bool, marks: bool = False) -> str:
        """Text of the first `count` messages (None: all); marks: with `begin` and `end` around what is marked."""
        given = {**self._variables, _BEGIN: self.begin, _END: self.end} if marks else self._variables
        return self._template.render(self._messages[:count], add_generation_prompt=add_generation_prompt, **given)

    def parts(self, text: str) -> list[tuple[str, bool]]:
        """Any piece of a rendering without marks, as (text, may control tokens be read from it?) parts."""
        return _parts(text, self._names)


_BEGIN, _END = "partita_generation_begin", "partita_generation_end"
_NO_TEMPLATE = "this model has no chat template (a base model): use --raw to complete plain text"


def one_bos(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """A conversation's ids with exactly one BOS in front, where the model was trained with one."""
    bos = tokenizer.bos_id
    if bos is None:
        return ids
    begin = next((i for i, token in enumerate(ids) if token != bos), len(ids))
    if not begin and not tokenizer.adds_bos:
        return ids
    # a model whose BOS also opens every message (`<|im_start|>`) writes it once here as well
    return [bos, *ids[begin:]]


def _strings(value: Any) -> Iterator[str]:
    """Every string inside a value of JSON's kinds, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def _replaced(value: Any, change: Callable[[str], str]) -> Any:
    """The same value with `change` applied to every string in it, keys included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_replaced(key, change): _replaced(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replaced(item, change) for item in value]
    return value


def _private_characters(names: Sequence[str], texts: Sequence[str]) -> dict[str, str]:
    """One character of Unicode's private planes for each name, none of which occurs in `texts`."""
    if not names:
        return {}
    used = set().union(*texts)
    free = (chr(code) for code in range(0xF0000, 0xFFFFE) if chr(code) not in used)
    marks = dict(zip(names, free, strict=False))
    if len(marks) < len(names):
        raise TemplateError("chat messages: they use every private character of Unicode; leave some out")
    return marks


def _parts(text: str, names: Mapping[str, str]) -> list[tuple[str, bool]]:
    """Rendered text as (text, may control tokens be read from it?) parts."""
    parts: list[tuple[str, bool]] = []
    begin = 0
    for i, character in enumerate(text) if names else ():
        if character in names:
            parts += [(text[begin:i], True), (names[character], False)]
            begin = i + 1
    return [*parts, (text[begin:], True)]


def _environment() -> Any:
    """A sandbox in which values cannot grow without bound and nothing of the caller's can be changed."""
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}...{% endgeneration %}` marks a reply for training: its contents, between two variables
        that are empty unless a MarkedChat gives them."""

        tags = {"generation"}  # noqa: RUF012 - jinja's own interface

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            begin, end = (nodes.Output([nodes.Name(name, "load")], lineno=line) for name in (_BEGIN, _END))
            return nodes.Scope([begin, *body, end], lineno=line)

    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"+", "*", "**", "%"})

        def _parse(self, source: str, name: str | None, filename: str | None) -> Any:
            return _plain_concatenation(super()._parse(source, name, filename), nodes)

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            _check_growth(operator, left, right)
            return super().call_binop(context, operator, left, right)

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            padding = isinstance(obj, str) and attr in {"center", "ljust", "rjust", "zfill", "expandtabs", "translate"}
            return not padding and super().is_safe_attribute(obj, attr, value)

    environment = Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation], cache_size=0
    )
    environment.filters["tojson"] = _tojson
    del environment.filters["center"]  # pads to any width
    environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now, "range": _range}
    return environment


def _plain_concatenation(tree: Any, nodes: Any) -> Any:
    """`a ~ b` written as the intercepted `a|string + b|string`: doubling a string is bounded either way."""
    for node in list(tree.find_all(nodes.Concat)):
        strings = [nodes.Filter(part, "string", [], [], None, None, lineno=node.lineno) for part in node.nodes]
        joined = strings[0]
        for part in strings[1:]:
            joined = nodes.Add(joined, part, lineno=node.lineno)
        node.nodes = [joined]
    tree.set_environment(tree.environment)
    return tree


def _check_growth(operator: str, left: Any, right: Any) -> None:
    """Raise when `left operator right` could be far larger than its operands."""
    sized = [value for value in (left, right) if isinstance(value, str | bytes | list | tuple)]
    if operator == "+":
        too_long = sum(map(len, sized)) > MAX_TEXT
    elif operator == "*" and sized:
        times = right if sized[0] is left else left
        too_long = isinstance(times, int) and len(sized[0]) * times > MAX_TEXT
    elif operator == "%":
        # a width such as "%999999999d" is not a template's business
        too_long = isinstance(left, str | bytes) and len(left) + _digits_value(str(left)) > MAX_TEXT
    else:
        bits = [value.bit_length() for value in (left, right) if isinstance(value, int)]
        too_long = len(bits) == 2 and (bits[0] * abs(right) if operator == "**" else sum(bits)) > 1 << 16
    if too_long:
        raise TemplateError(f"chat template: {operator!r} makes a value that is too large")


def _digits_value(text: str) -> int:
    digits = "".join(character if character.isdigit() else " " for character in text).split()
    return max((int(number[:12]) for number in digits), default=0)


def _range(*arguments: int) -> range:
    result = range(*arguments)
    if len(result) > _RANGE:
        raise TemplateError(f"chat template: range() of {len(result)} values, at most {_RANGE} are accepted")
    return result


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as models saw it in training: no escapes for HTML, other scripts written as they are."""
    indent = min(indent, 16) if indent else indent
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateError(f"chat template: {' '.join(str(message).split())}")


def _strftime_now(form: str) -> str:
    from datetime import datetime

    return datetime.now().strftime(form)


def _bounded(chunks: Iterator[str]) -> Iterator[str]:
    total = 0
    for chunk in chunks:
        total += len(chunk)
        if total > MAX_TEXT:
            raise TemplateError(f"chat template: it writes more than {MAX_TEXT} characters")
        yield chunk


def _within(seconds: float, work: Callable[[], _T]) -> _T:
    """Result of `work`, run in a thread; every failure is a TemplateError, and so is taking longer than `seconds`."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append((work(), None))
        except BaseException as error:  # the thread's only duty is to hand it over
            outcome.append((None, error))

    thread = threading.Thread(target=run, name="partita-template", daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        assert thread.ident is not None
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(_Stop))
        raise TemplateError(f"chat template: it did not finish within {seconds:g} seconds")
    value, error = outcome[0]
    if isinstance(error, TemplateError):
        raise error
    if error is not None:
        line = f" in line {error.lineno}" if getattr(error, "lineno", None) else ""
        reason = " ".join(str(error).split())[:300] or "no more is known"
        raise TemplateError(f"chat template: {type(error).__name__}{line}: {reason}") from error
    return value
