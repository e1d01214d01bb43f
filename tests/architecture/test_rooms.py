"""The rooms of the runtime: their imports follow the table of `rooms.py`, and no module is in a circle with another."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from . import rooms

ROOT = Path(__file__).parents[2]


def test_every_room_stands_in_the_table() -> None:
    found = {rooms.room_of(module) for module in rooms.modules() if module} - {"__main__"}
    assert found == set(rooms.MAY_IMPORT) | rooms.GROUND


def test_tests_stand_in_the_rooms_of_what_they_test() -> None:
    folders = {path.name for path in (ROOT / "tests/runtime").iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert folders <= {path.name for path in rooms.RUNTIME.iterdir() if path.is_dir()}


def test_the_table_points_down() -> None:
    """A room may import only rooms that stand before it."""
    before: set[str] = set()
    for room, allowed in rooms.MAY_IMPORT.items():
        assert allowed <= before, room
        before.add(room)


@pytest.mark.parametrize("room", [*rooms.MAY_IMPORT, *sorted(rooms.GROUND)])
def test_a_room_imports_what_it_may(room: str) -> None:
    allowed = rooms.MAY_IMPORT.get(room, frozenset())
    for (above, below), names in rooms.between_rooms().items():
        assert above != room or below in allowed, sorted(names)


def test_the_package_reaches_for_what_it_composes() -> None:
    found = {pair for pair in rooms.between_rooms() if pair[0] == ""}
    assert found == rooms.COMPOSITION


@pytest.mark.parametrize("root", rooms.PACKAGES, ids=lambda root: root.name)
def test_no_circle(root: Path) -> None:
    assert rooms.arrows(root)
    assert rooms.circles(rooms.arrows(root)) == []


def test_a_circle_is_found() -> None:
    graph = {("a",): {("b",)}, ("b",): {("c",)}, ("c",): {("a",), ("d",)}, ("d",): set()}
    assert rooms.circles(graph) == [[("a",), ("b",), ("c",)]]


def test_the_table_of_the_documents_is_this_one() -> None:
    text = (ROOT / "docs/design.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)/?` \| .* \| ([^|]*) \|$", text, flags=re.MULTILINE)
    said = {room: {name.strip() for name in allowed.split(",")} - {"–"} for room, allowed in rows}
    for room, allowed in rooms.MAY_IMPORT.items():
        if room in ("language_model", "draft_model", "shortcuts"):  # said in words
            assert room in said
        else:
            assert said[room] == allowed
