"""The file itself: whose it is, which version, damaged or not, and how it comes from an older one."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from partita.errors import DataError
from partita_apps.history import History, database, schema
from partita_apps.history.database import Database
from partita_apps.paths import data_folder


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def refused(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        History.open(path)
    assert "\n" not in str(caught.value)
    assert "--no-history" in str(caught.value)
    return str(caught.value)


def test_folder_and_files_are_private_whatever_the_umask(tmp_path, monkeypatch):
    monkeypatch.setenv("PARTITA_DATA", str(tmp_path / "deep" / "data"))
    before = os.umask(0)
    try:
        history = History.open()
        history.create(model="m")
    finally:
        os.umask(before)
    assert history.file == tmp_path / "deep" / "data" / "history.sqlite3"
    assert mode(data_folder()) == 0o700
    names = {f"history.sqlite3{end}" for end in ("", "-wal", "-shm")}
    assert {path.name for path in data_folder().iterdir()} == names
    assert {mode(path) for path in data_folder().iterdir()} == {0o600}
    history.close()


def test_a_file_that_others_may_read_becomes_private(tmp_path):
    path = tmp_path / "history.sqlite3"
    History.open(path).close()
    path.chmod(0o644)
    History.open(path).close()
    assert mode(path) == 0o600


def test_a_folder_that_cannot_be_used_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PARTITA_DATA", str(tmp_path / "file" / "data"))
    with pytest.raises(DataError, match="cannot be made: File exists: set PARTITA_DATA to another one"):
        data_folder()
    assert "No such file" in refused(tmp_path / "nowhere" / "history.sqlite3")
    (tmp_path / "folder").mkdir()
    assert "is not a file" in refused(tmp_path / "folder")


def test_the_platforms_folder_is_used_when_nobody_says(tmp_path, monkeypatch):
    monkeypatch.delenv("PARTITA_DATA", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = data_folder()
    assert folder.name == "partita"
    assert folder.is_relative_to(tmp_path)


def use(path: Path) -> None:
    """Everything that is in a history."""
    history = History.open(path)
    try:
        for chat in history.chats():
            history.messages(chat.id)
            history.search("7")
            history.erase(chat.id)
    finally:
        history.close()


@pytest.mark.parametrize("damage", ["beginning", "pages", "cut"])
def test_a_damaged_file_is_refused_and_left_alone(tmp_path, damage):
    path = tmp_path / "history.sqlite3"
    history = History.open(path)
    chat = history.create(model="m")
    for i in range(40):
        history.add(chat.id, parent=None, role="user", content=f"{i} " * 200)
    history.close()
    data = path.read_bytes()
    found = {
        "beginning": b"Z" * 100 + data[100:],
        "pages": data[:4096] + b"Z" * (len(data) - 4096),
        "cut": data[: len(data) // 2],
    }[damage]
    path.write_bytes(found)
    with pytest.raises(DataError, match="is damaged: move it away to begin another"):
        use(path)
    assert path.read_bytes() == found


def test_a_file_of_another_program_or_a_newer_version_is_refused(tmp_path):
    other, newer, text = tmp_path / "other", tmp_path / "newer", tmp_path / "text"
    sqlite3.connect(other).execute("CREATE TABLE notes (text)").connection.close()
    assert "is another program's file" in refused(other)
    History.open(newer).close()
    connection = sqlite3.connect(newer)
    connection.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    connection.close()
    assert f"is of format {schema.VERSION + 1}, and this partita reads up to {schema.VERSION}" in refused(newer)
    text.write_text("not a database, and longer than the header of one " * 20)
    assert "is damaged" in refused(text)


def insert(connection: sqlite3.Connection, table: str, values: dict[str, Any]) -> None:
    cells = [json.dumps(value) if isinstance(value, dict | list) else value for value in values.values()]
    connection.execute(f"INSERT INTO {table} ({', '.join(values)}) VALUES ({', '.join('?' * len(cells))})", cells)


def older(path: Path, version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file as an earlier version wrote it, with one chat of two messages and one that is being written."""
    with monkeypatch.context() as patched:
        patched.setattr(database, "STEPS", schema.STEPS[:version])
        patched.setattr(database, "VERSION", version)
        found = Database(path)
    now = {"title": "the old fox", "model": "m", "settings": {}, "folder": "", "pinned": False}
    with found.writing() as connection:
        insert(connection, "chats", {"id": "c", **now, "created": 1.0, "updated": 2.0, "leaf": "b"})
        usual = {"chat": "c", "thought": "", "calls": [], "attachments": [], "model": "m", "meta": {}, "created": 3.0}
        usual |= {"ids": b"\x90", "owner": ""}
        first = {"id": "a", "parent": None, "role": "user", "content": "a badger", "state": "done"}
        insert(connection, "messages", {**usual, **first})
        second = {"id": "b", "parent": "a", "role": "assistant", "content": "a heron", "state": "running"}
        insert(connection, "messages", {**usual, **second})
    found.close()


@pytest.mark.parametrize("version", range(1, schema.VERSION))
def test_an_older_file_becomes_one_of_this_version(tmp_path, monkeypatch, version):
    path = tmp_path / "history.sqlite3"
    older(path, version, monkeypatch)
    history = History.open(path)
    assert [(each.content, each.state) for each in history.path("c")] == [
        ("a badger", "done"),
        ("a heron", "interrupted"),
    ]
    for word, hits in (("fox", [None]), ("badger", ["a"]), ("heron", ["b"])):
        assert [hit.message for hit in history.search(word)] == hits
    history.put_trace("b", [{"id": 1}])
    history.close()
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (schema.VERSION,)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


def test_a_step_that_fails_leaves_the_older_file(tmp_path, monkeypatch):
    path = tmp_path / "history.sqlite3"
    older(path, 1, monkeypatch)
    with monkeypatch.context() as patched:
        patched.setattr(database, "STEPS", (*schema.STEPS[:2], "CREATE TABLE more (a);\nCREATE TABLE chats (a);\n"))
        assert "cannot be used: table chats already exists" in refused(path)
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name IN ('more', 'words')").fetchone() == (0,)
    connection.close()
    history = History.open(path)
    assert len(history.search("badger")) == 1
    history.close()


def test_a_file_that_others_make_at_this_moment_is_ours(tmp_path, monkeypatch):
    """Between the look at whose it is and the one at its tables."""
    path, tables = tmp_path / "history.sqlite3", database._tables
    other = threading.Thread(target=lambda: Database(path).close())

    def late(connection: sqlite3.Connection) -> bool:
        if other.ident is None:
            other.start()
            other.join(0.5)  # it makes the file, or waits until we have looked
        return tables(connection)

    monkeypatch.setattr(database, "_tables", late)
    Database(path).close()
    other.join()


def test_a_transaction_that_others_hold_too_long_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    history = History.open(tmp_path / "history.sqlite3")
    other = sqlite3.connect(tmp_path / "history.sqlite3", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(DataError, match=r"has been held by another program for 0\.05 seconds"):
        history.create(model="m")
    assert history.chats() == []  # reading goes on
    other.execute("ROLLBACK")
    assert history.create(model="m").model == "m"
    other.close()
    history.close()
    with pytest.raises(DataError, match="was closed"):
        history.chats()
