"""The page without a pointer: every shortcut of the list does what it says, and none of them where letters are text."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from partita_apps.history import Chat, History

from .conftest import PageAt


@pytest.fixture
def chat(history: History) -> Chat:
    history.create(model="tiny", title="Older")
    made = history.create(model="tiny", title="Newer")
    asked = history.add(made.id, parent=None, role="user", content="What is a fugue?")
    history.add(made.id, parent=asked.id, role="assistant", content="A form of counterpoint.", model="tiny")
    return history.chat(made.id)


@pytest.fixture
def opened(open_page: PageAt, chat: Chat) -> Page:
    page = open_page(f"#/chat/{chat.id}")
    expect(page.locator(".message")).to_have_count(2)
    page.get_by_role("button", name="New chat", exact=True).focus()
    return page


def composer(page: Page):
    return page.get_by_role("textbox", name="Message")


def test_the_list_of_keys_opens_with_one(opened: Page) -> None:
    opened.keyboard.press("?")
    dialog = opened.get_by_role("dialog", name="Keyboard")
    keys = dialog.locator("dd kbd").all_inner_texts()
    assert len(keys) == len(set(keys)) > 12
    opened.keyboard.press("n")
    expect(dialog).to_be_visible()


def test_letters_in_a_field_are_text_and_chords_work_there(opened: Page) -> None:
    opened.keyboard.press("c")
    expect(composer(opened)).to_be_focused()
    opened.keyboard.type("no jokes, fsmode?")
    expect(composer(opened)).to_have_value("no jokes, fsmode?")
    expect(opened.get_by_role("dialog")).to_have_count(0)
    opened.keyboard.press("Alt+Shift+F")
    expect(opened.get_by_role("searchbox")).to_be_focused()
    opened.keyboard.press("Alt+Shift+C")
    expect(composer(opened)).to_be_focused()


@pytest.mark.parametrize(("key", "name"), [("o", "Settings"), ("m", "Models"), ("?", "Keyboard")])
def test_keys_that_open_dialogs(opened: Page, key: str, name: str) -> None:
    opened.keyboard.press(key)
    expect(opened.get_by_role("dialog", name=name)).to_be_visible()


def test_next_previous_and_new_chat(opened: Page, chat: Chat) -> None:
    opened.keyboard.press("j")
    expect(opened.locator('.chat-row a[aria-current="page"]')).to_contain_text("Older")
    opened.get_by_role("button", name="New chat", exact=True).focus()
    opened.keyboard.press("k")
    expect(opened.locator('.chat-row a[aria-current="page"]')).to_contain_text("Newer")
    opened.get_by_role("button", name="New chat", exact=True).focus()
    opened.keyboard.press("n")
    opened.wait_for_url("**/#/")
    expect(composer(opened)).to_be_focused()
    expect(opened.locator('.chat-row a[aria-current="page"]')).to_have_count(0)


def test_delete_and_undo(opened: Page, chat: Chat, history: History) -> None:
    opened.keyboard.press("d")
    expect(opened.get_by_role("link", name="Newer")).to_have_count(0)
    opened.get_by_role("button", name="Undo").press("Enter")
    expect(opened.get_by_role("link", name="Newer")).to_be_visible()
    assert history.chat(chat.id).deleted is None


def test_copy_the_last_reply(opened: Page) -> None:
    opened.keyboard.press("y")
    expect(opened.locator(".toast")).to_contain_text("Copied the last reply")
    assert opened.evaluate("navigator.clipboard.readText()") == "A form of counterpoint."


def test_edit_the_last_message(opened: Page) -> None:
    opened.keyboard.press("e")
    expect(opened.locator(".message textarea")).to_have_value("What is a fugue?")
    expect(opened.locator(".message textarea")).to_be_focused()


def test_the_list_of_chats_is_hidden_and_shown(opened: Page) -> None:
    opened.keyboard.press("s")
    expect(opened.locator("#sidebar")).to_be_hidden()
    opened.keyboard.press("Alt+Shift+S")
    expect(opened.locator("#sidebar")).to_be_visible()


def test_letters_by_themselves_can_be_switched_off(opened: Page) -> None:
    opened.keyboard.press("?")
    opened.get_by_label("Keys by themselves").uncheck()
    opened.keyboard.press("Escape")
    opened.get_by_role("button", name="New chat", exact=True).focus()
    opened.keyboard.press("m")
    expect(opened.get_by_role("dialog")).to_have_count(0)
    opened.keyboard.press("Alt+Shift+M")
    expect(opened.get_by_role("dialog", name="Models")).to_be_visible()


def test_keys_with_ctrl_are_the_browsers(opened: Page) -> None:
    for key in ("n", "f", "j", "d", "s", "p", "o", "m"):
        caught = opened.evaluate(
            """key => {
                const event = new KeyboardEvent("keydown", {key, ctrlKey: true, bubbles: true, cancelable: true});
                return !document.activeElement.dispatchEvent(event);
            }""",
            key,
        )
        assert not caught, key
    expect(opened.get_by_role("dialog")).to_have_count(0)
