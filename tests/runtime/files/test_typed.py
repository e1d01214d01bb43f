"""Values in declared types: what is taken, and the one line for what is not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta, Struct, field

from partita.files.typed import Misfit, typed

Natural = Annotated[int, Meta(ge=0)]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


class Part(TypedDict):
    kind: Literal["text", "call"]
    size: NotRequired[Natural]


@dataclass(frozen=True)
class Whole:
    name: str
    parts: list[Part]
    counts: dict[str, int]
    rate: float | None = None


GOOD: dict[str, Any] = {"name": "a", "parts": [{"kind": "text", "size": 3}], "counts": {"x": 1}}


def test_a_value_in_its_type() -> None:
    assert typed(GOOD, Whole) == Whole("a", [{"kind": "text", "size": 3}], {"x": 1})
    assert typed({**GOOD, "rate": 1, "unknown": 2}, Whole) == Whole("a", [{"kind": "text", "size": 3}], {"x": 1}, 1.0)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"name": 3}, "name: expected text, got 3"),
        ({"parts": {}}, "parts: expected a list, got an object"),
        ({"parts": [{"kind": "text"}, 7]}, "parts[1]: expected an object, got 7"),
        ({"parts": [{"size": 1}]}, "parts[0].kind is missing"),
        ({"parts": [{"kind": "it's"}]}, 'parts[0].kind: unknown value, got "it\'s"'),
        ({"parts": [{"kind": "text", "size": -1}]}, "parts[0].size: expected an integer >= 0, got -1"),
        ({"parts": [{"kind": "text", "size": True}]}, "parts[0].size: expected an integer, got true"),
        ({"parts": None}, "parts: expected a list, got null"),
        ({"counts": {"x": "1"}}, "counts[...]: expected an integer, got text"),
        ({"counts": {1: 2}}, "counts: expected text, got an integer"),
        ({"rate": "fast"}, "rate: expected a number, got 'fast'"),
        ({"rate": 10**400}, "rate: expected a number within range, got 1000"),
    ],
)
def test_what_does_not_fit_is_one_line(change: dict[str, Any], line: str) -> None:
    with pytest.raises(Misfit) as caught:
        typed({**GOOD, **change}, Whole)
    assert str(caught.value).startswith(line)


def test_a_value_alone_has_the_name_it_is_given() -> None:
    for value, kind, line in [
        ("x", int, "steps: expected an integer, got 'x'"),
        (3, Whole, "steps: expected an object, got 3"),
        ({**GOOD, "name": []}, Whole, "steps.name: expected text, got a list"),
        (["a", 1], list[str], "steps[1]: expected text, got 1"),
        (7, str | list[str], "steps: expected text or a list, got 7"),
    ]:
        with pytest.raises(Misfit) as caught:
            typed(value, kind, "steps")
        assert str(caught.value) == line
    with pytest.raises(Misfit, match=r"^name is missing$"):
        typed({}, Whole)
    with pytest.raises(Misfit, match=r"^expected an object, got true$"):
        typed(True, Whole)


def test_texts_are_numbers_where_that_is_asked() -> None:
    assert typed("1e-4", float, strict=False) == 1e-4
    assert typed("5", int, strict=False) == typed(5.0, int, strict=False) == 5
    for value in ("1.5", "", True, 1.5, float("nan")):
        with pytest.raises(Misfit):
            typed(value, int, strict=False)
    for value in ("5", 5.0):
        with pytest.raises(Misfit):
            typed(value, int)


@given(JSON)
def test_any_value_fits_or_is_a_misfit_of_one_line(value: Any) -> None:
    for kind in (Whole, int, float, list[Part], dict[str, Natural], str | list[str]):
        for strict in (True, False):
            try:
                typed(value, kind, strict=strict)
            except Misfit as error:
                assert "\n" not in str(error)  # noqa: PT017 - what fits raises nothing
                assert len(str(error)) < 10_000  # noqa: PT017


@given(JSON)
def test_what_fits_anything_comes_back(value: Any) -> None:
    assert repr(typed(value, object)) == repr(value)


def test_a_name_that_holds_a_dot() -> None:
    class Sums(Struct):
        first: str = field(name="a.safetensors")

    with pytest.raises(Misfit, match=r"^a\.safetensors: expected text, got an integer$"):
        typed({"a.safetensors": 3}, Sums)
    with pytest.raises(Misfit, match=r"^sums\.a\.safetensors is missing$"):
        typed({"a": {"safetensors": 3}}, Sums, "sums")
