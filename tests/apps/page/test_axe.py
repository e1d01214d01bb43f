"""The page by axe: nothing serious on any view, in both themes, wide and narrow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from partita_apps.bench.page_server import markdown
from partita_apps.history import History

from ..serve.scripted import Script
from ..serve.served import Served
from .conftest import PageAt
from .talk import LOOKS

DIALOGS = ("Models", "Export and import", "Connect a tool", "Recently deleted", "Keyboard", "About and colours")


@pytest.fixture
def chat(history: History) -> str:
    made = history.create(model="tiny", title="Fugues")
    history.create(model="tiny", title="Another", folder="Music")
    asked = history.add(made.id, parent=None, role="user", content="What is a fugue?")
    tasks = "- [x] one\n- [ ] two\n\n> quoted\n\n![a picture](https://example.org/a.png)\n"
    history.add(
        made.id, parent=asked.id, role="assistant", content=markdown(2) + tasks, thought="Let me think.", model="tiny"
    )
    return made.id


def settled(page: Page) -> None:
    page.get_by_role("textbox", name="Message").wait_for()
    page.wait_for_timeout(400)  # what fades in has its colours then


@LOOKS
def test_the_beginning(open_page: PageAt, axe: Callable[[Page], list[str]], width: int, theme: str) -> None:
    page = open_page(width=width, theme=theme, reduced_motion="reduce")
    settled(page)
    assert axe(page) == []


@LOOKS
def test_a_chat(open_page: PageAt, axe: Callable[[Page], list[str]], chat: str, width: int, theme: str) -> None:
    page = open_page(f"#/chat/{chat}", width=width, theme=theme, reduced_motion="reduce")
    expect(page.locator(".message")).to_have_count(2)
    settled(page)
    assert axe(page) == []


@LOOKS
def test_an_inspected_reply(
    served: Callable[..., Served], data: Path, page_at: PageAt, axe: Callable[[Page], list[str]], width: int, theme: str
) -> None:
    page = page_at(served(Script("the quick brown fox"), data=data), width=width, theme=theme, reduced_motion="reduce")
    box = page.get_by_role("textbox", name="Message")
    box.fill("go")
    box.press("Enter")
    page.locator("button.stop").wait_for(state="hidden")
    reply = page.locator(".message").last.get_attribute("data-id")
    page.evaluate("([id]) => { location.hash = `${location.hash}/inspect/${id}`; }", [reply])
    expect(page.locator("#inspector")).to_be_visible()
    settled(page) if width > 600 else page.wait_for_timeout(600)
    assert axe(page) == []


@LOOKS
def test_the_dialogs(open_page: PageAt, axe: Callable[[Page], list[str]], width: int, theme: str) -> None:
    page = open_page(width=width, theme=theme, reduced_motion="reduce")
    for name in DIALOGS:
        settled(page)
        if width < 600:
            page.get_by_role("button", name="Chats").first.click()
        page.locator(".sidebar").get_by_role("button", name=name, exact=True).click()
        expect(page.get_by_role("dialog")).to_be_visible()
        page.wait_for_timeout(200)
        assert axe(page) == [], name
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_have_count(0)
        if width < 600:
            page.reload()  # the sidebar is shut again


def test_locked(page_at: PageAt, url: str, axe: Callable[[Page], list[str]], complaints) -> None:
    complaints.allow("401|403")
    page = page_at(url, locked=True)
    page.wait_for_timeout(500)
    assert axe(page) == []


@LOOKS
def test_fine_tuning(open_page: PageAt, axe: Callable[[Page], list[str]], width: int, theme: str) -> None:
    page = open_page("#/tuning", width=width, theme=theme, reduced_motion="reduce")
    expect(page.locator("#tuning")).to_be_visible()
    page.wait_for_timeout(400)
    assert axe(page) == []
