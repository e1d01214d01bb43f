"""The list of chats as a person uses it: groups, folders, names, pins, deleting with a way back; by pointer and key."""

from __future__ import annotations

import time

import pytest
from playwright.sync_api import Page, expect

from partita_apps.history import History

from .conftest import PageAt

DAY = 86_400


@pytest.fixture
def chats(history: History, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Ids by titles, of chats in every group."""
    made: dict[str, str] = {}
    now = time.time()
    for title, folder, age in (
        ("Bread with less yeast", "", 5),
        ("Notes of the meeting", "Work", 3),
        ("Trip to the sea", "", 0),
        ("Reading list", "", 0),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(time, "time", lambda age=age: now - age * DAY)
            chat = history.create(model="tiny", title=title, folder=folder)
            asked = history.add(chat.id, parent=None, role="user", content=f"about {title}")
            history.add(chat.id, parent=asked.id, role="assistant", content="An answer.", model="tiny")
        made[title] = chat.id
    history.change(made["Reading list"], pinned=True)
    return made


def row(page: Page, title: str):
    return page.locator(".chat-row").filter(has=page.get_by_role("link", name=title))


def menu(page: Page, title: str, item: str) -> None:
    row(page, title).hover()
    page.get_by_role("button", name=f"Actions for {title}").click()
    page.get_by_role("menuitem", name=item).click()


def groups(page: Page) -> list[tuple[str, list[str]]]:
    """What each group is called, and the titles in it."""
    sections = page.locator(".chat-list section")
    return [
        (section.get_attribute("aria-label") or "", section.locator(".chat-title").all_inner_texts())
        for section in sections.all()
    ]


def test_chats_are_grouped(open_page: PageAt, chats: dict[str, str]) -> None:
    page = open_page()
    expect(page.locator(".chat-row")).to_have_count(4)
    assert groups(page) == [
        ("Pinned", ["Reading list"]),
        ("Folder Work", ["Notes of the meeting"]),
        ("Today", ["Trip to the sea"]),
        ("Earlier", ["Bread with less yeast"]),
    ]


def test_a_list_without_chats_says_how_one_begins(open_page: PageAt) -> None:
    page = open_page()
    expect(page.locator(".chat-list")).to_contain_text("The first message begins one")


def test_a_folded_folder_stays_folded(open_page: PageAt, chats: dict[str, str]) -> None:
    page = open_page()
    page.locator("summary", has_text="Work").click()
    expect(row(page, "Notes of the meeting")).to_be_hidden()
    page.reload()
    expect(row(page, "Trip to the sea")).to_be_visible()
    expect(row(page, "Notes of the meeting")).to_be_hidden()


def test_a_chat_is_opened_and_marked(open_page: PageAt, chats: dict[str, str]) -> None:
    page = open_page()
    page.get_by_role("link", name="Trip to the sea").click()
    page.wait_for_url(f"**/#/chat/{chats['Trip to the sea']}")
    expect(page.locator('.chat-row a[aria-current="page"]')).to_contain_text("Trip to the sea")


def test_a_chat_is_renamed_in_place(open_page: PageAt, chats: dict[str, str], history: History) -> None:
    page = open_page()
    menu(page, "Trip to the sea", "Rename")
    field = page.get_by_role("textbox", name="Name of the chat")
    expect(field).to_be_focused()
    field.fill("Trip to the hills")
    field.press("Enter")
    link = page.get_by_role("link", name="Trip to the hills")
    expect(link).to_be_focused()
    assert history.chat(chats["Trip to the sea"]).title == "Trip to the hills"
    link.press("F2")
    field.fill("something else")
    field.press("Escape")
    expect(page.get_by_role("link", name="Trip to the hills")).to_be_focused()
    assert history.chat(chats["Trip to the sea"]).title == "Trip to the hills"


def test_a_menu_that_is_open_stays_when_others_change(
    open_page: PageAt, chats: dict[str, str], history: History
) -> None:
    page = open_page()
    page.get_by_role("button", name="Actions for Trip to the sea").click()
    item = page.get_by_role("menuitem", name="Rename")
    expect(item).to_be_focused()
    with page.expect_response("**/app/chats"):
        history.change(chats["Bread with less yeast"], title="Bread with more yeast")
    item.press("Enter")
    name = page.get_by_role("textbox", name="Name of the chat")
    expect(name).to_be_focused()
    name.press("Escape")
    expect(page.get_by_role("link", name="Bread with more yeast")).to_be_visible()


def test_a_name_that_is_being_typed_stays_when_others_change(
    open_page: PageAt, chats: dict[str, str], history: History
) -> None:
    page = open_page()
    page.get_by_role("link", name="Trip to the sea").focus()
    page.keyboard.press("F2")
    page.keyboard.type("Half a na")
    history.change(chats["Bread with less yeast"], title="Bread with more yeast")
    page.wait_for_function("document.querySelector('.rename').value === 'Half a na'")
    page.keyboard.type("me")
    page.keyboard.press("Enter")
    expect(page.get_by_role("link", name="Half a name")).to_be_visible()
    expect(page.get_by_role("link", name="Bread with more yeast")).to_be_visible()


def test_a_chat_is_pinned_with_the_keyboard(open_page: PageAt, chats: dict[str, str], history: History) -> None:
    page = open_page()
    page.get_by_role("link", name="Bread with less yeast").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("menuitem", name="Rename")).to_be_focused()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.get_by_role("region", name="Pinned")).to_contain_text("Bread with less yeast")
    assert history.chat(chats["Bread with less yeast"]).pinned
    expect(page.get_by_role("button", name="Actions for Bread with less yeast")).to_be_focused()


def test_escape_closes_a_menu_and_gives_the_focus_back(open_page: PageAt, chats: dict[str, str]) -> None:
    page = open_page()
    button = page.get_by_role("button", name="Actions for Trip to the sea")
    button.focus()
    page.keyboard.press("Enter")
    expect(button).to_have_attribute("aria-expanded", "true")
    page.keyboard.press("Escape")
    expect(page.get_by_role("menu")).to_have_count(0)
    expect(button).to_be_focused()


def test_a_chat_is_moved_into_a_new_folder_and_out(open_page: PageAt, chats: dict[str, str], history: History) -> None:
    page = open_page()
    menu(page, "Trip to the sea", "Move to folder")
    field = page.get_by_role("combobox", name="Folder")
    expect(field).to_be_focused()
    field.fill("Holidays")
    field.press("Enter")
    expect(page.get_by_role("region", name="Folder Holidays")).to_contain_text("Trip to the sea")
    assert history.chat(chats["Trip to the sea"]).folder == "Holidays"
    menu(page, "Trip to the sea", "Move to folder")
    page.get_by_role("button", name="No folder").click()
    expect(page.get_by_role("region", name="Today")).to_contain_text("Trip to the sea")
    expect(page.get_by_role("region", name="Folder Holidays")).to_have_count(0)


def test_a_deleted_chat_comes_back_by_undo(open_page: PageAt, chats: dict[str, str], history: History) -> None:
    page = open_page()
    page.get_by_role("link", name="Trip to the sea").click()
    expect(page.locator('.chat-row a[aria-current="page"]')).to_be_visible()
    menu(page, "Trip to the sea", "Delete")
    expect(row(page, "Trip to the sea")).to_have_count(0)
    assert history.chat(chats["Trip to the sea"]).deleted is not None
    page.get_by_role("button", name="Undo").click()
    expect(row(page, "Trip to the sea")).to_be_visible()
    page.wait_for_url(f"**/#/chat/{chats['Trip to the sea']}")
    assert history.chat(chats["Trip to the sea"]).deleted is None


def test_deleted_chats_are_restored_or_erased(open_page: PageAt, chats: dict[str, str], history: History) -> None:
    history.delete(chats["Trip to the sea"])
    history.delete(chats["Reading list"])
    page = open_page()
    page.get_by_role("button", name="Recently deleted").click()
    dialog = page.get_by_role("dialog", name="Recently deleted")
    dialog.get_by_role("button", name="Restore Trip to the sea").click()
    expect(row(page, "Trip to the sea")).to_be_visible()
    dialog.get_by_role("button", name="Erase Reading list").click()
    assert history.chat(chats["Reading list"]).deleted is not None
    dialog.get_by_role("button", name="Erase Reading list for good").click()
    expect(dialog).to_contain_text("Nothing was deleted")
    assert chats["Reading list"] not in [each.id for each in history.chats(deleted=True)]


def test_arrows_go_from_chat_to_chat(open_page: PageAt, chats: dict[str, str]) -> None:
    page = open_page()
    page.get_by_role("link", name="Reading list").focus()
    page.keyboard.press("ArrowDown")
    expect(page.locator("summary", has_text="Work")).to_be_focused()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    expect(page.get_by_role("link", name="Trip to the sea")).to_be_focused()


def test_what_another_process_writes_is_shown(open_page: PageAt, chats: dict[str, str], history: History) -> None:
    page = open_page()
    expect(page.locator(".chat-row")).to_have_count(4)
    history.create(model="tiny", title="From the terminal")
    expect(page.get_by_role("link", name="From the terminal")).to_be_visible()


def test_a_hostile_title_is_text(open_page: PageAt, history: History) -> None:
    title = "<img src=x onerror=\"document.body.dataset.hurt='1'\"><script>document.body.dataset.hurt='1'</script>"
    history.create(model="tiny", title=title)
    page = open_page()
    expect(page.locator(".chat-title")).to_have_text(title)
    assert page.locator("body").get_attribute("data-hurt") is None
    assert page.locator(".chat-list img").count() == 0
