"""The tables of the history, as the steps that lead from one version of the file to the next.

A step that was released is never changed: another one follows it. `user_version` of a file counts the steps it took.
"""

from __future__ import annotations

APPLICATION = 0x70617274
"""SQLite's `application_id` of our files ("part")."""

_CHATS = """
CREATE TABLE chats (
    n INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    title TEXT NOT NULL,
    model TEXT NOT NULL,
    settings TEXT NOT NULL,  -- JSON
    folder TEXT NOT NULL,
    pinned INTEGER NOT NULL,
    created REAL NOT NULL,
    updated REAL NOT NULL,
    deleted REAL,
    leaf TEXT
);
CREATE INDEX chats_in_order ON chats (pinned, updated, id);
CREATE TABLE messages (
    n INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    chat TEXT NOT NULL REFERENCES chats (id) ON DELETE CASCADE,
    parent TEXT,
    role TEXT NOT NULL,
    content TEXT NOT NULL,
    thought TEXT NOT NULL,
    calls TEXT NOT NULL,  -- JSON
    attachments TEXT NOT NULL,  -- JSON
    state TEXT NOT NULL,
    model TEXT NOT NULL,
    meta TEXT NOT NULL,  -- JSON
    ids BLOB NOT NULL,  -- msgpack
    created REAL NOT NULL,
    owner TEXT NOT NULL,  -- who writes it while it runs
    UNIQUE (chat, id),
    FOREIGN KEY (chat, parent) REFERENCES messages (chat, id) DEFERRABLE INITIALLY DEFERRED
);
CREATE INDEX messages_of_parent ON messages (chat, parent);
CREATE INDEX messages_running ON messages (state) WHERE state = 'running';
"""

# An index beside the tables, not a second copy of their texts. A running reply is indexed once it has ended, since its
# text is written four times a second. FTS5 wants the very text back that it was given, hence a row is in the index
# exactly while its state is not 'running'. It leaves before the update and enters after it: triggers of one time have
# no order.
_WORDS = """
CREATE VIRTUAL TABLE titles USING fts5(title, content='chats', content_rowid='n', tokenize='unicode61', prefix='2 3');
CREATE TRIGGER titles_insert AFTER INSERT ON chats BEGIN
    INSERT INTO titles (rowid, title) VALUES (new.n, new.title);
END;
CREATE TRIGGER titles_update AFTER UPDATE OF title ON chats WHEN new.title IS NOT old.title BEGIN
    INSERT INTO titles (titles, rowid, title) VALUES ('delete', old.n, old.title);
    INSERT INTO titles (rowid, title) VALUES (new.n, new.title);
END;
CREATE TRIGGER titles_delete AFTER DELETE ON chats BEGIN
    INSERT INTO titles (titles, rowid, title) VALUES ('delete', old.n, old.title);
END;
CREATE VIRTUAL TABLE words USING fts5(
    content, content='messages', content_rowid='n', tokenize='unicode61', prefix='2 3'
);
CREATE TRIGGER words_insert AFTER INSERT ON messages WHEN new.state <> 'running' BEGIN
    INSERT INTO words (rowid, content) VALUES (new.n, new.content);
END;
CREATE TRIGGER words_leave BEFORE UPDATE OF content, state ON messages
WHEN old.state <> 'running' AND (new.state = 'running' OR new.content IS NOT old.content) BEGIN
    INSERT INTO words (words, rowid, content) VALUES ('delete', old.n, old.content);
END;
CREATE TRIGGER words_enter AFTER UPDATE OF content, state ON messages
WHEN new.state <> 'running' AND (old.state = 'running' OR new.content IS NOT old.content) BEGIN
    INSERT INTO words (rowid, content) VALUES (new.n, new.content);
END;
CREATE TRIGGER words_delete AFTER DELETE ON messages WHEN old.state <> 'running' BEGIN
    INSERT INTO words (words, rowid, content) VALUES ('delete', old.n, old.content);
END;
INSERT INTO titles (rowid, title) SELECT n, title FROM chats;
INSERT INTO words (rowid, content) SELECT n, content FROM messages WHERE state <> 'running';
"""

_TRACES = """
CREATE TABLE traces (
    message TEXT PRIMARY KEY REFERENCES messages (id) ON DELETE CASCADE,
    rows BLOB NOT NULL  -- msgpack, compressed
);
CREATE TABLE presets (name TEXT PRIMARY KEY, settings TEXT NOT NULL);
"""

STEPS = (_CHATS, _WORDS, _TRACES)
VERSION = len(STEPS)
