"""What a person types into a search, as questions to SQLite. Invariant: every text is a question that it understands.

Words are found by their beginnings, in any order, without regard to case and accents (FTS5). Where a word holds more
than letters and digits ("C++"), or is of a script that puts no spaces between words, it is looked for as it stands.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .database import Database
from .records import Hit

MARK, END = "\x02", "\x03"
_LONGEST, _MOST = 500, 16  # characters, words
_AROUND = 60  # characters before and behind what is shown
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]"
)

_WORDS = """
SELECT m.id AS message, m.content AS content, m.created AS updated, c.id AS chat, c.title AS title,
       snippet(words, 0, char(2), char(3), '…', 16) AS snippet
FROM words JOIN messages m ON m.n = words.rowid JOIN chats c ON c.id = m.chat
WHERE words MATCH :match AND c.deleted IS NULL
"""
_TITLES = """
SELECT NULL AS message, c.title AS content, c.updated AS updated, c.id AS chat, c.title AS title,
       highlight(titles, 0, char(2), char(3)) AS snippet
FROM titles JOIN chats c ON c.n = titles.rowid WHERE titles MATCH :match AND c.deleted IS NULL
"""
_ALL_WORDS = """
SELECT m.id AS message, m.content AS content, m.created AS updated, c.id AS chat, c.title AS title
FROM messages m JOIN chats c ON c.id = m.chat WHERE m.state <> 'running' AND c.deleted IS NULL
"""
_ALL_TITLES = """
SELECT NULL AS message, c.title AS content, c.updated AS updated, c.id AS chat, c.title AS title
FROM chats c WHERE c.deleted IS NULL
"""


@dataclass(frozen=True)
class Query:
    """match: for FTS5, "" where it has nothing to look for. literal: what must stand in a text as it is."""

    match: str
    literal: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> Query:
        words = text[:_LONGEST].encode("utf-8", "replace").decode().replace("\0", " ").split()[:_MOST]
        match, literal = [], []
        for word in words:
            spaced = not _UNSPACED.search(word)
            if spaced and any(map(str.isalnum, word)):
                match.append(f'"{word.replace(chr(34), " ")}"*')
            if not spaced or not word.isalnum():
                literal.append(word)
        return cls(" ".join(match), tuple(literal))

    def __bool__(self) -> bool:
        return bool(self.match or self.literal)

    def snippet(self, text: str) -> str:
        """The surroundings of the first of what is looked for as it stands, marked."""
        wanted = re.compile("|".join(map(re.escape, self.literal)), re.IGNORECASE)
        found = wanted.search(text)
        if found is None:
            return text[: 2 * _AROUND]
        begin, end = max(found.start() - _AROUND, 0), found.end() + _AROUND
        cut = wanted.sub(lambda match: f"{MARK}{match[0]}{END}", text[begin:end])
        return f"{'…' * (begin > 0)}{cut}{'…' * (end < len(text))}"


def found(database: Database, text: str, limit: int) -> list[Hit]:
    """Titles, then messages; the newest first."""
    query, hits = Query.of(text), list[Hit]()
    if not query:
        return hits
    values = {f"w{i}": f"%{_escaped(word)}%" for i, word in enumerate(query.literal)}
    for matching, every, column in ((_TITLES, _ALL_TITLES, "c.title"), (_WORDS, _ALL_WORDS, "m.content")):
        wanted = "".join(f" AND {column} LIKE :{name} ESCAPE '\\'" for name in values)
        source = f"{matching if query.match else every}{wanted} ORDER BY updated DESC LIMIT :limit"
        given = {**values, "match": query.match, "limit": limit - len(hits)}
        for row in database.rows(source, given):
            snippet = row["snippet"] if query.match else query.snippet(row["content"])
            hits.append(Hit(row["chat"], row["message"], row["title"], snippet, row["updated"]))
    return hits


def _escaped(word: str) -> str:
    return word.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
