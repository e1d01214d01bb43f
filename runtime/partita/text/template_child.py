"""A program: conversations in, text out, through the chat templates of strangers.

`python -I -S template_child.py CHANNEL FOLDER…` finds jinja2 in the folders and speaks through CHANNEL with
`template_process`, which starts it. A frame in is one JSON document. A frame out is one byte and UTF-8: TEXT, or FAILED
with a line for a person, and the rest of the request is left undone. Without memory it exits with OUT_OF_MEMORY.

Not here: whether a template takes too long, which the other side watches; the limits below are for systems that have
them, and for a rendering whose other side has died. Invariants: a template sees values of JSON's kinds and changes
nothing but its own variables; it is given, and it means, what transformers' `apply_chat_template` would make of it.
Imports nothing of partita.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TypeGuard

TEXT, FAILED = b"+", b"-"
OUT_OF_MEMORY = 3
MEMORY = 512 << 20  # bytes that this process may have, the interpreter among them
MAX_TEXT = 1 << 24  # characters of one rendering
BEGIN, END = "partita_generation_begin", "partita_generation_end"
"""Variables that are written around what `{% generation %}` marks: nothing, unless they are given."""
THOUGHTS = ("reasoning_content", "thinking", "reasoning")
"""Names that an assistant's thoughts have in messages; the first one with a value counts."""


class Refused(Exception):
    """What the template itself, or a limit here, has against a conversation."""


def main(channel: int, folders: list[str]) -> None:
    sys.path += folders  # behind the standard library's
    _limit()
    connection = _connected(channel)
    environment = _environment()
    compiled: dict[int, Any] = {}
    connection.send_bytes(TEXT)  # ready
    while True:
        try:
            request = connection.recv_bytes()
        except (EOFError, OSError):  # the other side is gone
            return
        for answer in _answers(environment, compiled, request):
            connection.send_bytes(answer)


def _answers(environment: Any, compiled: dict[int, Any], request: bytes) -> Iterator[bytes]:
    """For a source that is to be compiled an empty text; for each rendering its text."""
    try:
        asked = json.loads(request)
        number, seconds = asked["template"], asked["seconds"]
        if "source" in asked:
            with _time_limit(seconds):
                compiled[number] = environment.from_string(asked["source"])
            yield TEXT
            return
        messages, variables = _given(asked)
        for spans, more in asked["renderings"]:
            chosen = [message for begin, end in spans for message in messages[begin:end]]
            with _time_limit(seconds):
                text = _joined(compiled[number].generate({**variables, **more, "messages": chosen}))
            yield TEXT + text.encode("utf-8", "surrogatepass")
    except MemoryError:
        raise
    except BaseException as error:  # a template can raise anything, and whatever it is belongs to the template
        yield FAILED + _reason(error).encode("utf-8", "surrogatepass")


def _given(asked: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Messages and variables as transformers gives them to a template."""
    variables = {"tools": None, "documents": None, **asked["variables"]}
    if asked["today"] is not None:
        variables.setdefault("strftime_now", datetime(*asked["today"]).strftime)
    return [_message(message) for message in asked["messages"]], variables


def _message(message: Any) -> dict[str, Any]:
    """Without keys that have no value, and thoughts under both names that templates read."""
    if not _is_object(message):
        raise Refused(f"a message is a {type(message).__name__}: it must be an object with a role and a content")
    kept = {key: value for key, value in message.items() if value is not None}
    thought = next((kept[name] for name in THOUGHTS if name in kept), None)
    return kept if thought is None else {"thinking": thought, **kept, "reasoning_content": thought}


def _is_object(value: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)


def _joined(chunks: Iterator[str]) -> str:
    found: list[str] = []
    total = 0
    for chunk in chunks:
        total += len(chunk)
        if total > MAX_TEXT:
            raise Refused(f"it writes more than {MAX_TEXT} characters")
        found.append(chunk)
    return "".join(found)


def _reason(error: BaseException) -> str:
    if isinstance(error, Refused):
        return str(error)
    line = getattr(error, "lineno", None)  # of what does not compile
    where = "" if line is None else f" in line {line}"
    return f"{type(error).__name__}{where}: {str(error)[:1000] or 'no more is known'}"


# ---------------------------------------------------------------- the dialect


def _environment() -> Any:
    """Jinja as chat templates expect it."""
    environment = _sandbox()
    environment.filters["tojson"] = _tojson
    environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    return environment


def _sandbox() -> Any:
    """Jinja that lets nothing be changed which was given."""
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}…{% endgeneration %}`: its contents between two variables."""

        tags = {"generation"}  # noqa: RUF012 - jinja's own interface

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            begin, end = (nodes.Output([nodes.Name(name, "load")], lineno=line) for name in (BEGIN, END))
            return nodes.Scope([begin, *body, end], lineno=line)

    return ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation], cache_size=0
    )


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as models saw it in training: no escapes for HTML, other scripts written as they are."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: Any) -> None:
    raise Refused(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


# ---------------------------------------------------------------- the process


def _connected(channel: int) -> Any:
    if sys.platform == "win32":
        from multiprocessing.connection import PipeConnection as Connection
    else:
        from multiprocessing.connection import Connection
    return Connection(channel)


def _limit() -> None:
    """Deaf to the terminal, no more memory than MEMORY, no files written: as far as the system has such bounds."""
    if sys.platform == "win32":
        return
    import resource

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # whoever started us may have had signals blocked
    for what, bound in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        _, hard = resource.getrlimit(what)
        own = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        try:
            resource.setrlimit(what, (own, own))
        except (ValueError, OSError):  # macOS does not bound the address space: there the other side watches
            continue


@contextmanager
def _time_limit(seconds: float) -> Generator[None, None, None]:
    """Should the other side not live to do it, the system ends this process, whatever it is in the middle of."""
    if sys.platform == "win32":
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, seconds + 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]), sys.argv[2:])
    except MemoryError:
        sys.exit(OUT_OF_MEMORY)
