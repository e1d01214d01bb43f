"""The list of chats and every dialog: nothing serious that axe finds, in both themes; drawer and sheets on a phone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from partita_apps.history import History

from .conftest import PageAt

DIALOGS = ("Models", "Export and import", "Connect a tool", "Recently deleted", "Keyboard", "About and colours")
TOUCH = 40  # CSS pixels


@pytest.fixture
def filled(history: History) -> History:
    """Chats in every group, and one that was deleted."""
    for title, folder in (("Reading list", ""), ("A title that is much longer than the list of chats is wide", "Work")):
        chat = history.create(model="tiny", title=title, folder=folder)
        history.add(chat.id, parent=None, role="user", content="What is a fugue?")
    history.delete(history.create(model="tiny", title="Gone").id)
    history.put_preset("Exact", {"temperature": 0})
    return history


def dialogs(page: Page, phone: bool = False):
    """Open one after the other."""
    expect(page.locator(".model-button-name")).to_have_text("tiny")
    page.get_by_role("button", name="Settings of this chat").click()
    yield page.get_by_role("dialog", name="Settings")
    page.keyboard.press("Escape")
    if phone:
        page.get_by_role("button", name="Chats", exact=True).click()
    for name in DIALOGS:
        page.locator(".sidebar").get_by_role("button", name=name, exact=True).click()
        yield page.get_by_role("dialog")
        page.keyboard.press("Escape")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_serious_in_the_list_and_in_dialogs(
    open_page: PageAt, filled: History, axe: Callable[[Page], list[str]], theme: str
) -> None:
    page = open_page(theme=theme)
    expect(page.locator(".chat-row")).to_have_count(2)
    for dialog in dialogs(page):
        expect(dialog).to_be_visible()
        assert axe(page) == []
    page.get_by_role("searchbox").fill("fugue")
    expect(page.locator(".hits a")).to_have_count(2)
    assert axe(page) == []
    page.get_by_role("searchbox").fill("")
    page.get_by_role("button", name="Actions for Reading list").click()
    expect(page.get_by_role("menu")).to_be_visible()
    assert axe(page) == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_dialogs_are_sheets_on_a_phone(open_page: PageAt, filled: History, theme: str) -> None:
    page = open_page(width=390, height=844, theme=theme, has_touch=True, is_mobile=True, reduced_motion="reduce")
    for dialog in dialogs(page, phone=True):
        box = dialog.bounding_box()
        assert box is not None
        assert (box["x"], box["width"], box["y"] + box["height"]) == (0, 390, 844)
        assert dialog.evaluate("each => each.querySelector('.dialog-body').scrollWidth") <= 390
        assert too_small(page, "dialog") == []


def test_the_list_is_a_drawer_on_a_phone(open_page: PageAt, filled: History) -> None:
    page = open_page(width=390, height=844, has_touch=True, is_mobile=True, reduced_motion="reduce")
    expect(page.locator("#sidebar")).to_be_hidden()
    page.get_by_role("button", name="Chats", exact=True).click()
    expect(page.locator("#sidebar")).to_be_visible()
    expect(page.locator("#sidebar")).to_be_in_viewport(ratio=1)
    assert too_small(page, "#sidebar") == []
    page.keyboard.press("Escape")
    expect(page.locator("#sidebar")).to_be_hidden()
    page.get_by_role("button", name="Chats", exact=True).click()
    page.get_by_role("link", name="Reading list").click()
    expect(page.locator("#sidebar")).to_be_hidden()
    expect(page.locator(".transcript")).to_contain_text("What is a fugue?")


def too_small(page: Page, inside: str) -> list[str]:
    """What a finger would miss."""
    return page.evaluate(
        """([inside, least]) => [...document.querySelectorAll(`${inside} :is(button, a, summary, select, input)`)]
            .filter(each => each.checkVisibility() && !each.closest("p, .check, .segments"))
            .map(each => [each, each.getBoundingClientRect()])
            .filter(([each, box]) => box.height < least - 0.5 || box.width < least - 0.5)
            .map(([each, box]) => `${each.outerHTML.slice(0, 120)} ${box.width} x ${box.height}`)""",
        [inside, TOUCH],
    )
