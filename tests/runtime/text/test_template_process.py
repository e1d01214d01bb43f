"""The process that renders: its limits hold whatever a template does, and it comes and goes without a trace."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import psutil
import pytest

from partita.errors import TemplateError
from partita.text import template_process
from partita.text.template_process import TemplateProcess

HELLO = [{"role": "user", "content": "hello"}]
PLAIN = "{{ messages[0].content }}"
HANGS = "{{ 7 ** (7 ** 9) > 1 }}"  # one step of the interpreter, for minutes


@pytest.fixture
def process() -> Iterator[TemplateProcess]:
    own = TemplateProcess()
    yield own
    own.stop()


def rendered(process: TemplateProcess, source: str, seconds: float = 5) -> str:
    request = {"messages": HELLO, "variables": {}, "today": None, "renderings": [(((0, 9),), {})]}
    return process.render(source, request, seconds)[0]


def pid_of(process: TemplateProcess) -> int:
    assert process._child is not None
    return process._child._process.pid


LONG = [
    "{{ 2.5|round(400000000, 'floor') }}",
    "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3,
    "{{ ([range(99999)] * 99999)|map('sum')|sum }}",
    "{% set n = namespace(x=0) %}{% for i in range(64) %}{% set n.x = {'a': n.x, 'b': n.x} %}{% endfor %}{{ n.x }}",
    "{{ ('(' * 99999)|urlize(9, true)|length }}" * 999,
]


@pytest.mark.parametrize("source", [HANGS, *LONG])
def test_a_template_that_takes_too_long_is_one_line_and_the_next_one_renders(process, source):
    with pytest.raises(TemplateError, match=r"^chat template: it did not finish within 0\.3 seconds$"):
        rendered(process, source, 0.3)
    assert rendered(process, PLAIN) == "hello"


@pytest.mark.parametrize(
    "source",
    [
        "{{ '{:>3000000000}'.format('x')|length }}",
        "{{ 'x'.zfill(4000000000)|length }}",
        "{{ ('ab' * 9999)|replace('', 'c' * 99999)|length }}",
        "{{ [1, 2, 3]|batch(700000000, 0)|list|length }}",
        "{% set n = namespace(x=[1]) %}{% for i in range(40) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "{{ (['a' * 99999] * 99999)|join|length }}",
    ],
)
def test_a_template_that_takes_too_much_is_one_line_and_the_next_one_renders(process, source):
    with pytest.raises(TemplateError, match=r"^chat template: it takes more than 512 MiB of memory$"):
        rendered(process, source)
    assert rendered(process, PLAIN) == "hello"


def test_memory_is_watched_where_the_system_does_not_bound_it(process, monkeypatch):
    rendered(process, PLAIN)
    monkeypatch.setattr(template_process, "MEMORY", psutil.Process(pid_of(process)).memory_info().rss + (20 << 20))
    with pytest.raises(TemplateError, match="takes more than"):
        rendered(
            process, "{% set x = 'a' * 99999999 %}{% for i in range(99999) %}{{ i|string|trim }}{% endfor %}" * 9, 9
        )


def test_what_takes_long_in_one_thread_does_not_stop_another(process):
    """Each has its turn; every one of them gets its own text or its own error."""
    found: dict[int, str] = {}

    def work(number: int) -> None:
        source = HANGS if number == 2 else f"{number}{PLAIN}"
        try:
            found[number] = rendered(process, source, 0.5 if number == 2 else 5)
        except TemplateError as error:
            found[number] = str(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "did not finish" in found.pop(2)
    assert found == {number: f"{number}hello" for number in (0, 1, 3, 4)}


def test_it_is_started_once_and_again_after_it_was_ended(process):
    rendered(process, PLAIN)
    first = pid_of(process)
    rendered(process, PLAIN + "!")
    assert pid_of(process) == first
    os.kill(first, signal.SIGINT)  # Ctrl-C is for this process alone
    assert rendered(process, PLAIN) == "hello"
    assert pid_of(process) == first
    psutil.Process(first).kill()
    wait_until(lambda: psutil.Process(first).status() == psutil.STATUS_ZOMBIE)
    assert rendered(process, PLAIN) == "hello"
    assert pid_of(process) != first
    assert not psutil.pid_exists(first)


def test_any_number_of_templates(process):
    assert [rendered(process, f"{i}{PLAIN}") for i in range(150)] == [f"{i}hello" for i in range(150)]
    assert rendered(process, f"0{PLAIN}") == "0hello"


def test_several_texts_of_a_conversation_are_one_request(process):
    messages = [{"role": "user", "content": letter} for letter in "abc"]
    request = {"messages": messages, "variables": {"x": 1}, "today": (2001, 2, 3)}
    source = "{{ messages|map(attribute='content')|join }}{{ x }}{{ strftime_now('%d') }}"
    which = [(((0, None),), {}), (((0, 1), (2, 3)), {"x": 2}), ((), {})]
    assert process.render(source, {**request, "renderings": which}, 5) == ["abc103", "ac203", "103"]
    with pytest.raises(TemplateError, match="UndefinedError"):
        process.render("{{ messages[1].content.text.more }}", {**request, "renderings": which}, 5)
    assert rendered(process, PLAIN) == "hello"


# ---------------------------------------------------------------- processes of their own


def python(code: str, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, *options, "-c", code]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


BEGIN = f"""
import os, signal, threading, time
from partita.errors import TemplateError
from partita.text.chat_template import ChatTemplate
from partita.text.template_process import shared
hello = {HELLO!r}
shared().compile("x", 5)
child = shared()._child._process.pid
print(child, flush=True)
"""


def test_nothing_is_left_behind_when_the_interpreter_exits():
    done = python(BEGIN + f"print(ChatTemplate({PLAIN!r}).render(hello))", "-X", "dev", "-W", "error")
    out, err = done.communicate(timeout=60)
    pid, text = out.split()
    assert (text, err, done.returncode) == ("hello", "", 0)
    assert not psutil.pid_exists(int(pid))


@pytest.mark.parametrize("busy", [False, True])
def test_it_ends_with_a_process_that_is_killed(busy):
    """Idle, it sees that the other side has gone; in the middle of a step, its own alarm wakes it."""
    hang = f"""
shared()._child.answer = lambda seconds: print("asked", flush=True) or time.sleep(60)  # it waits for ever
ChatTemplate({HANGS!r}, seconds=1).render(hello)
"""
    parent = python(BEGIN + (hang if busy else "time.sleep(60)"))
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    if busy:
        assert parent.stdout.readline() == "asked\n"
    parent.kill()
    parent.communicate()
    child.wait(10)  # raises where it is still there


def test_ctrl_c_reaches_a_program_whose_template_hangs():
    """While one compiles as while it renders. The 2 s within which it is answered are the template's: later it would
    be the template that is refused."""
    code = f"""
for source in {[HANGS, *LONG]!r}:
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        ChatTemplate(source, seconds=2).render(hello)
    except KeyboardInterrupt:
        print(ChatTemplate({PLAIN!r}).render(hello))
"""
    out, err = python(BEGIN + code).communicate(timeout=60)
    assert (out.split("\n")[1:-1], err) == (["hello"] * (1 + len(LONG)), "")


def test_a_fork_has_its_own():
    code = f"""
template = ChatTemplate({PLAIN!r})
pid = os.fork()
text = template.render(hello)
if not pid:
    os._exit(0 if text == "hello" and shared()._child._process.pid != child else 1)
print(os.waitpid(pid, 0)[1], template.render(hello), shared()._child._process.pid == child)
"""
    out, err = python(BEGIN + code).communicate(timeout=60)
    assert (out.split("\n")[1], err) == ("0 hello True", "")


def test_without_standard_streams(tmp_path):
    target = tmp_path / "text"
    code = f"{BEGIN.replace('print', '#')}\nopen({str(target)!r}, 'w').write(ChatTemplate({PLAIN!r}).render(hello))"
    (tmp_path / "program.py").write_text(code)
    command = f'"{sys.executable}" program.py <&- >&- 2>&-'
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    assert target.read_text() == "hello"


def test_a_system_that_starts_no_process_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(TemplateError, match="could not start: No such file"):
        rendered(TemplateProcess(), PLAIN)


def test_a_process_that_does_not_come_up_is_one_line(monkeypatch, process):
    monkeypatch.setattr(template_process, "_folders", lambda *packages: [])
    with pytest.raises(TemplateError, match=r"could not start \(status 1\)"):
        rendered(process, PLAIN)


def wait_until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
