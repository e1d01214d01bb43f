"""What the page shows before a chat begins, and where something is missing; whether everybody can use it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from partita_apps.serve.app import token

from ..serve.scripted import Script, ScriptedRegistry
from ..serve.served import Served, serving
from .conftest import Complaints
from .talk import PROSE, ask, ended, field

Serve = Callable[..., Served]
PageAt = Callable[..., Page]


def test_the_first_start_says_which_model_and_where_chats_are(open_page: PageAt) -> None:
    page = open_page()
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    start = page.locator(".start-view")
    expect(start).to_contain_text("tiny answers, on this machine alone.")
    expect(start).to_contain_text("history.sqlite3")
    expect(page.get_by_role("group", name="Examples").get_by_role("button")).to_have_count(3)


def test_without_its_key_the_page_says_how_to_get_it(
    served: Serve, page_at: PageAt, data: Path, complaints: Complaints
) -> None:
    complaints.allow("status of 401")
    page = page_at(served(data=data), "", locked=True)
    expect(page.get_by_role("heading", level=1)).to_have_text("This page needs its key")
    expect(page.locator(".command")).to_contain_text("partita serve --open")
    expect(field(page)).to_be_hidden()
    key = page.get_by_label("Or paste the key")
    key.fill("not this one")
    key.press("Enter")
    expect(page.get_by_role("alert").filter(has_text="This is not the key")).to_be_visible()
    own = token.read(data)
    assert own is not None
    key.fill(own)
    key.press("Enter")
    expect(field(page)).to_be_visible()
    assert own not in page.url
    assert own not in page.content()


def test_without_a_model_the_page_says_how_to_get_one(page_at: PageAt, data: Path) -> None:
    with serving(ScriptedRegistry({}), data=data) as server:
        page = page_at(server)
        expect(page.get_by_role("heading", level=1)).to_have_text("No model on this machine yet")
        expect(page.locator(".command")).to_contain_text("partita models pull")
        field(page).fill("hello")
        expect(page.get_by_role("button", name="Send", exact=True)).to_be_disabled()
        page.context.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_everybody_can_use_it(
    served: Serve, page_at: PageAt, data: Path, axe: Callable[[Page], list[str]], theme: str, width: int
) -> None:
    page = page_at(served(Script(PROSE), data=data, text={"context": 4096}), theme=theme, width=width)
    expect(page.get_by_role("group", name="Examples")).to_be_visible()
    assert axe(page) == []
    ask(page, "what is a ring?")
    ended(page)
    assert axe(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_person_who_wants_no_motion_gets_none(served: Serve, page_at: PageAt, data: Path) -> None:
    page = page_at(served(Script("the", holds=True), data=data), reduced_motion="reduce")
    ask(page, "go")
    dot = page.locator(".dots i").first
    expect(dot).to_be_visible()
    assert dot.evaluate("element => getComputedStyle(element).animationDuration") == "0s"
    page.keyboard.press("Escape")  # a server that ends would wait for the reply
    ended(page)


def test_the_skip_button_leads_to_the_field(open_page: PageAt) -> None:
    page = open_page()
    expect(field(page)).to_be_visible()
    skip = page.get_by_role("button", name="Skip to the message field")
    skip.focus()
    expect(skip).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(field(page)).to_be_focused()
