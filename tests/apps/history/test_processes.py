"""Several processes with one history, and what is left of one that is killed while it writes."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from partita_apps.history import History, owner

WRITER = """
import sys
from pathlib import Path
from partita_apps.history import History
history = History.open(Path(sys.argv[1]))
chat = history.create(model="m")
asked = history.add(chat.id, parent=None, role="user", content=sys.argv[2])
reply = history.add(chat.id, parent=asked.id, role="assistant", state="running")
print(reply.id, flush=True)
for i in range(1, 100_000):
    history.write(reply.id, content="".join(f"{n} " for n in range(i)), ids=range(i))
    print(i, flush=True)
"""
WAITER = WRITER.partition("for i")[0] + "import time\ntime.sleep(600)\n"
"""It writes nothing more: what is stopped in the middle of a write holds the file."""
ADDER = """
import sys
from pathlib import Path
from partita_apps.history import History
history = History.open(Path(sys.argv[1]))
chat = history.create(model="m", title=sys.argv[2])
parent = None
for i in range(25):
    parent = history.add(chat.id, parent=parent, role="user", content=f"{sys.argv[2]} {i}").id
history.close()
"""
Start = Callable[[str, Path, str], subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """start(script, file, word) is a process of its own."""
    running: list[subprocess.Popen[str]] = []

    def begin(script: str, file: Path, word: str) -> subprocess.Popen[str]:
        arguments = [sys.executable, "-c", script, str(file), word]
        running.append(subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True))
        return running[-1]

    yield begin
    for child in running:
        child.kill()
        child.wait()
        if child.stdout is not None:
            child.stdout.close()


def line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def intact(file: Path) -> bool:
    connection = sqlite3.connect(file)
    try:
        for table in ("words", "titles"):
            connection.execute(f"INSERT INTO {table} ({table}, rank) VALUES ('integrity-check', 1)")
        return connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    finally:
        connection.close()


def test_processes_that_begin_one_file_together_lose_nothing(start, tmp_path):
    file = tmp_path / "history.sqlite3"
    children = [start(ADDER, file, f"word{i}") for i in range(4)]
    assert [child.wait(60) for child in children] == [0] * 4
    history = History.open(file)
    for chat in history.chats():
        assert [each.content for each in history.path(chat.id)] == [f"{chat.title} {i}" for i in range(25)]
    assert len(history.chats()) == 4
    history.close()
    assert intact(file)


def test_kill_at_random_moments_leaves_history_whole_and_the_last_text(start, tmp_path):
    file, moments = tmp_path / "history.sqlite3", random.Random(15)
    for round_ in range(5):
        children = [start(WRITER, file, f"round{round_} {i}") for i in range(2)]
        replies = [line(child) for child in children]
        last = [0, 0]
        for _ in range(moments.randrange(30)):
            last = [int(line(child)) for child in children]
        time.sleep(moments.random() * 0.02)
        for child in children:
            child.send_signal(signal.SIGKILL)
            child.wait()
        history = History.open(file)
        for reply, count in zip(replies, last, strict=True):
            found = history.message(reply)
            assert found.state == "interrupted"
            assert len(found.ids) >= count
            assert found.ids == tuple(range(len(found.ids)))
            assert found.content == "".join(f"{n} " for n in range(len(found.ids)))
            assert [each.role for each in history.path(found.chat)] == ["user", "assistant"]
        assert len(history.search(f"round{round_}")) == 4  # a title and a text each
        history.close()
        assert intact(file)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_a_running_reply_is_its_writers_until_that_one_is_gone(start, tmp_path):
    file = tmp_path / "history.sqlite3"
    child = start(WAITER, file, "the fox")
    reply = line(child)
    history = History.open(file)
    assert history.message(reply).state == "running"
    assert history.recover() == []
    os.kill(child.pid, signal.SIGSTOP)  # silent is not dead
    assert History.open(file).message(reply).state == "running"
    child.kill()
    child.wait()
    assert history.message(reply).state == "interrupted"  # also without opening it again
    assert history.recover() == []
    history.close()


def test_a_process_id_that_is_given_again_is_another_process():
    began = psutil.Process().create_time()
    assert owner.lives(owner.me())
    assert not owner.lives(f"{os.getpid()} {began - 60:.2f}")
    for nobody in ("", "0", "x y", f"{2**40} 1.0", f"{os.getpid()} x"):
        assert not owner.lives(nobody)


def test_a_process_that_has_ended_and_is_not_collected_is_gone(start, tmp_path):
    child = start(WRITER, tmp_path / "history.sqlite3", "the fox")
    reply = line(child)
    child.send_signal(signal.SIGKILL)
    assert os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT) is not None
    history = History.open(tmp_path / "history.sqlite3")
    assert history.message(reply).state == "interrupted"
    history.close()
