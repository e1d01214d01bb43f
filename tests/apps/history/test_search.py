"""What searches find, and that any text is one."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partita_apps.history import History

TEXTS = {
    "cpp": "Templates in C++ are hard",
    "c": "The cat sat",
    "cafe": "Un café à Orléans",
    "chinese": "我们今天学习编程语言",
    "percent": "100% of snake_case names",
    "quote": 'she said "hello there" twice',
    "code": "def main(): return NULL",
}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> History:
    history = History.open(tmp_path_factory.mktemp("search") / "history.sqlite3")
    for title, content in TEXTS.items():
        chat = history.create(model="m", title=f"title of {title}")
        history.add(chat.id, parent=None, role="user", content=content)
    return history


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("cat", ["c"]),
        ("CAT sa", ["c"]),
        ("sat cat", ["c"]),
        ("cat dog", []),
        ("c++", ["cpp"]),
        ("cafe orleans", ["cafe"]),
        ("编程", ["chinese"]),
        ("学习 语言", ["chinese"]),
        ("100%", ["percent"]),
        ("snake_", ["percent"]),
        ("snakeXcase", []),
        ('"hello', ["quote"]),
        ("main():", ["code"]),
        ("NULL", ["code"]),
        ("NOT", []),
        ("", []),
        (" \n", []),
    ],
)
def test_words_are_found_in_messages(filled, text, found):
    assert [hit.title.removeprefix("title of ") for hit in filled.search(text) if hit.message is not None] == found


def test_titles_come_first_and_what_matches_is_marked(filled):
    hits = filled.search("c")
    assert [hit.message is None for hit in hits] == sorted((hit.message is None for hit in hits), reverse=True)
    assert [(hit.title, hit.snippet) for hit in filled.search("quote")] == [
        ("title of quote", "title of \x02quote\x03")
    ]
    assert filled.search("编程")[0].snippet == "我们今天学习\x02编程\x03语言"
    assert filled.search("sat")[0].snippet == "The cat \x02sat\x03"
    assert len(filled.search("title", limit=3)) == 3


@settings(max_examples=200)
@given(st.text(max_size=40) | st.text(alphabet="\"'*()-+:^{}\\%_ ANDORNEAT\x00\ud800", max_size=30))
def test_every_text_can_be_searched_for(filled, text):
    for hit in filled.search(text):
        assert hit.snippet


@settings(max_examples=25)
@given(st.text(min_size=1, max_size=60).filter(str.strip))
def test_what_was_said_is_found_by_its_words(tmp_path_factory, text):
    history = History.open(Path(tmp_path_factory.mktemp("said")) / "h")
    try:
        chat = history.create(model="m", title="-")
        message = history.add(chat.id, parent=None, role="user", content=f"before {text} after")
        words = message.content.split()
        for word in words[:4]:
            if word.isascii() and word.isalnum():
                assert message.id in [hit.message for hit in history.search(word)]
    finally:
        history.close()
