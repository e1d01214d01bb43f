"""The file of the history: opened for nobody but its owner, brought to this version, read and written in transactions.

Not here: what its tables mean. Invariants: the file and what SQLite puts beside it are readable by their owner alone; a
transaction is there whole or not at all, whatever ends the process; several processes and threads may use one file at
once; every failure is one DataError that says what to do.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from partita.errors import DataError

from .schema import APPLICATION, STEPS, VERSION

BUSY_SECONDS = 10.0
"""How long a transaction waits for those of others, which take milliseconds."""
BESIDE = ("-wal", "-shm", "-journal")
"""What SQLite puts beside a file, under its name and these."""
_INSTEAD = "or chat without a history (--no-history)"


class Database:
    """One connection, which the threads of this process take in turn. path: None for one in memory alone."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._version, self._seen = 0, (0, 0)
        with self._translated():
            if path is not None:
                _make_private(path)
            self._connection = sqlite3.connect(
                path or ":memory:", timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            try:
                self._prepare()
            except BaseException:
                self._connection.close()
                raise

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def rows(self, query: str, values: Sequence[Any] | dict[str, Any] = ()) -> list[sqlite3.Row]:
        with self._lock, self._translated():
            return self._connection.execute(query, values).fetchall()

    @contextmanager
    def writing(self) -> Generator[sqlite3.Connection, None, None]:
        """A transaction: all of it, or, where the block fails, nothing."""
        with self._lock, self._translated():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # a full disk has rolled it back already
                    self._connection.execute("ROLLBACK")
                raise

    def changes(self) -> int:
        """Another number than before, once anybody has written: this process or another one."""
        with self._lock, self._translated():
            (found,) = self._connection.execute("PRAGMA data_version").fetchone()
            seen = (found, self._connection.total_changes)
            self._version += seen != self._seen
            self._seen = seen
            return self._version

    def scrub(self) -> None:
        """What was erased leaves the files, too."""
        with self._lock, self._translated():
            for table in ("titles", "words"):
                self._connection.execute(f"INSERT INTO {table} ({table}) VALUES ('optimize')")
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _prepare(self) -> None:
        execute = self._connection.execute
        self._connection.row_factory = sqlite3.Row
        execute("BEGIN")  # all three as of one moment: another process may be making the file
        (version,), (application,) = (execute(f"PRAGMA {n}").fetchone() for n in ("user_version", "application_id"))
        tables = _tables(self._connection)
        execute("COMMIT")
        if version > VERSION:
            raise DataError(
                f"{self.path} is of format {version}, and this partita reads up to {VERSION}: use the newer one, "
                f"{_INSTEAD}"
            )
        if application not in (0, APPLICATION) or (application == 0 and tables):
            raise DataError(f"{self.path} is another program's file: move it away, {_INSTEAD}")
        execute("PRAGMA foreign_keys = ON")
        execute("PRAGMA secure_delete = ON")
        self._into_wal()
        execute("PRAGMA synchronous = NORMAL")  # a killed process loses nothing; the power, at most the last moment
        if version < VERSION:
            self._migrate()

    def _into_wal(self) -> None:
        """Others that open the file at this moment make SQLite refuse without waiting. Where a file system cannot share
        memory the file stays as it is, which is slower and no less safe."""
        until = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL").fetchone()
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                    raise
                time.sleep(0.01)

    def _migrate(self) -> None:
        """All steps in one transaction: a file is of the old version or of this one."""
        with self.writing() as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()  # others may have been faster
            for step in STEPS[version:]:
                for statement in _statements(step):
                    connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION}")
            connection.execute(f"PRAGMA user_version = {VERSION}")

    @contextmanager
    def _translated(self) -> Generator[None, None, None]:
        try:
            yield
        except sqlite3.ProgrammingError as error:
            if "closed" not in str(error):
                raise
            raise DataError(f"the history {self.path} was closed") from None
        except UnicodeEncodeError:
            raise DataError("half of a surrogate pair is no text that could be looked for") from None
        except sqlite3.IntegrityError as error:
            raise DataError(f"{self.path}: what was to be written does not fit what is there ({error})") from None
        except (sqlite3.Error, OSError) as error:
            raise DataError(f"{self.path}, the history of chats, {_reason(error)}, {_INSTEAD}") from None


def _reason(error: Exception) -> str:
    """What is wrong, and what to do."""
    if isinstance(error, OSError):
        return f"cannot be used: {error.strerror or error}: set PARTITA_DATA to another folder"
    code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return f"has been held by another program for {BUSY_SECONDS:g} seconds: end that one"
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return "is damaged: move it away to begin another"
    if code == sqlite3.SQLITE_FULL:
        return "cannot be written, as the disk is full: free some space"
    return f"cannot be used: {error}: set PARTITA_DATA to another folder"


def _make_private(path: Path) -> None:
    """An empty file where there is none; what is there becomes its owner's alone. Raises OSError, DataError."""
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    for each in (path, *(path.with_name(path.name + end) for end in BESIDE)):
        try:
            kind = each.stat().st_mode
        except FileNotFoundError:
            continue
        if not stat.S_ISREG(kind):
            raise DataError(f"{each} is not a file: move it away, {_INSTEAD}")
        if kind & 0o077:
            each.chmod(0o600)


def _tables(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is not None


def _statements(step: str) -> Generator[str, None, None]:
    """A script's statements, one by one: `executescript` would end the transaction."""
    found = ""
    for line in step.splitlines(keepends=True):
        found += line
        if sqlite3.complete_statement(found):
            yield found
            found = ""
