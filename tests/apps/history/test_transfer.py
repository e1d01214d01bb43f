"""Whole trees out of a history and into another one, as documents that somebody else may have written."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.errors import DataError
from partita_apps.history import History


def fill(history: History) -> str:
    chat = history.create(model="tiny", title="A chat", settings={"temperature": 0.3}, folder="work")
    asked = history.add(
        chat.id,
        parent=None,
        role="user",
        content="the fox",
        attachments=[{"name": "a.txt", "type": "text/plain", "text": "x"}],
    )
    history.add(chat.id, parent=asked.id, role="assistant", content="first", thought="hm", model="tiny", ids=[1, 2])
    history.add(chat.id, parent=asked.id, role="assistant", content="second", state="length", meta={"seconds": 1.0})
    history.put_preset("terse", {"max_tokens": 9})
    return chat.id


def without_ids(document: dict[str, Any]) -> Any:
    """A document with the places of messages instead of their ids."""
    found = copy.deepcopy(document)
    for chat in found["chats"]:
        places = {message["id"]: i for i, message in enumerate(chat["messages"])}
        chat["leaf"] = places.get(chat["leaf"])
        for message in chat["messages"]:
            message["id"], message["parent"] = places[message["id"]], places.get(message["parent"])
    return found


def test_a_whole_tree_goes_out_and_in(history, tmp_path):
    fill(history)
    document = json.loads(json.dumps(history.export()))
    other = History.open(tmp_path / "other")
    (chat,) = other.import_(document)
    assert without_ids(other.export()) == without_ids(document)
    assert [each.content for each in other.path(chat.id)] == ["the fox", "second"]
    assert len(other.search("first")) == 1
    other.import_(document)  # twice: two chats
    assert len(other.chats()) == 2
    other.close()


def test_chats_can_be_chosen_and_deleted_ones_stay(history):
    first, second = fill(history), fill(history)
    history.delete(second)
    assert len(history.export()["chats"]) == 1
    assert len(history.export([first, second])["chats"]) == 2
    assert history.export([first])["presets"] == {}


def damage(document: dict[str, Any], path: list[Any], value: Any) -> dict[str, Any]:
    found = copy.deepcopy(document)
    place = found
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return found


DAMAGES = [
    (["partita_history"], 9, "is of format 9"),
    (["chats"], "x", "damaged: chats: expected a list"),
    (["chats", 0, "title"], 3, "title: expected text"),
    (["chats", 0, "leaf"], "nothing", "goes on from message 'nothing'"),
    (["chats", 0, "messages", 1, "parent"], "nothing", "does not stand before it"),
    (["chats", 0, "messages", 0, "role"], "king", "role: expected one of|expected one of user"),
    (["chats", 0, "messages", 0, "state"], "odd", "expected one of done"),
    (["chats", 0, "messages", 2, "ids"], [-1], "ids"),
    (["chats", 0, "messages", 2, "created"], "now", "expected a number"),
    (["chats", 0, "messages", 2, "created"], float("inf"), "expected seconds"),
    (["chats", 0, "messages", 0, "attachments"], [{"name": 1}], "attachments"),
    (["chats", 0, "settings"], [], "settings: expected an object"),
    (["presets", "terse"], 1, "presets"),
]


@pytest.mark.parametrize(("path", "value", "words"), DAMAGES)
def test_nothing_is_half_imported(history, path, value, words):
    fill(history)
    document = history.export()
    before = history.export()
    with pytest.raises(DataError, match=words):
        history.import_(damage(document, path, value))
    assert history.export() == before


@pytest.mark.parametrize("document", [None, [], {}, "text", {"partita_conversation": 1}])
def test_what_is_no_export_is_refused(history, document):
    with pytest.raises(DataError, match="not an export of a history"):
        history.import_(document)


def test_circles_and_twins_are_refused(history):
    fill(history)
    document = history.export()
    messages = document["chats"][0]["messages"]
    for path, value in (
        (["chats", 0, "messages", 0, "parent"], messages[1]["id"]),
        (["chats", 0, "messages", 2, "id"], messages[1]["id"]),
    ):
        with pytest.raises(DataError, match="damaged"):
            history.import_(damage(document, path, value))
    deep: Any = {}
    for _ in range(150):
        deep = {"a": deep}
    with pytest.raises(DataError, match="nested more than"):
        history.import_(damage(document, ["chats", 0, "messages", 0, "meta"], deep))
    assert len(history.chats()) == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=50)
@given(
    st.sampled_from(
        ["chats", "title", "settings", "messages", "id", "parent", "content", "calls", "meta", "ids", "created", "leaf"]
    ),
    JSON,
)
def test_any_value_in_any_place_is_taken_or_refused_in_words(tmp_path_factory, name, value):
    history = History.open(tmp_path_factory.mktemp("fuzz") / "h")
    try:
        fill(history)
        document = history.export()
        chat = document["chats"][0]
        place = document if name in document else chat if name in chat else chat["messages"][1]
        place[name] = value
        try:
            chats = history.import_(document)
        except DataError:
            chats = []
        assert {chat.id for chat in chats} < {chat.id for chat in history.chats()}
        assert len(history.chats()) == 1 + len(chats)
        for each in chats:
            assert history.path(each.id) == [] or history.path(each.id)[-1].id == each.leaf
        assert json.loads(json.dumps(history.export()))
    finally:
        history.close()


def test_markdown_is_what_is_shown_of_the_tree(history):
    text = history.markdown(fill(history))
    assert text.startswith("# A chat\n\n## You\n\n*Attached: a.txt*\n\nthe fox\n\n## tiny\n\nsecond\n\n*(length)*\n")
    assert "first" not in text
