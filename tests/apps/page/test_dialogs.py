"""The dialogs as a person uses them: each keeps the focus, says what is wrong in a line, and gives the focus back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from partita_apps.history import Chat, History
from partita_apps.serve.clients.command import CLIENTS

from .conftest import Complaints, PageAt

OPENERS = ("Models", "Export and import", "Connect a tool", "Recently deleted", "Keyboard", "About and colours")


@pytest.fixture
def chat(history: History) -> Chat:
    made = history.create(model="tiny", title="Counterpoint")
    asked = history.add(made.id, parent=None, role="user", content="What is a fugue?")
    history.add(made.id, parent=asked.id, role="assistant", content="A form of counterpoint.", model="tiny")
    return history.chat(made.id)


def settings(page: Page) -> Locator:
    page.get_by_role("button", name="Settings of this chat").click()
    return page.get_by_role("dialog", name="Settings")


@pytest.mark.parametrize("name", OPENERS)
def test_a_dialog_keeps_the_focus_and_gives_it_back(open_page: PageAt, name: str) -> None:
    page = open_page()
    opener = page.locator(".sidebar").get_by_role("button", name=name, exact=True)
    opener.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    expect(dialog.get_by_role("heading", level=2)).to_be_focused()
    for _ in range(40):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement === document.body || !!document.activeElement.closest('dialog')")
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(opener).to_be_focused()


def test_a_press_beside_a_dialog_closes_it_and_one_that_began_inside_does_not(open_page: PageAt) -> None:
    page = open_page()
    page.get_by_role("button", name="About and colours").click()
    dialog = page.get_by_role("dialog")
    box = dialog.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 20, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(5, 5)
    page.mouse.up()
    expect(dialog).to_be_visible()
    page.mouse.click(5, 5)
    expect(dialog).to_have_count(0)


# Settings


def test_settings_show_defaults_and_whose_they_are(open_page: PageAt, chat: Chat) -> None:
    page = open_page(f"#/chat/{chat.id}")
    dialog = settings(page)
    temperature = dialog.get_by_label("Temperature", exact=True)
    expect(temperature).to_have_value("")
    expect(temperature).to_have_attribute("placeholder", "0.7")
    expect(temperature).to_have_accessible_description(
        "default, partita's 0 takes the most probable token; higher varies more."
    )
    temperature.fill("0.2")
    expect(dialog.locator("#setting-temperature-by")).to_have_text("yours; default 0.7")
    dialog.get_by_role("button", name="Temperature: take the default, 0.7").click()
    expect(temperature).to_have_value("")
    expect(temperature).to_be_focused()


def test_only_what_a_person_chose_is_kept_with_the_chat(open_page: PageAt, chat: Chat, history: History) -> None:
    page = open_page(f"#/chat/{chat.id}")
    dialog = settings(page)
    dialog.get_by_label("Instructions").fill("Answer in French.")
    dialog.get_by_label("Temperature", exact=True).press("ArrowUp")
    dialog.get_by_label("Longest reply", exact=True).fill("64")
    dialog.get_by_label("Stop texts", exact=True).fill("END\\n\nSTOP")
    dialog.get_by_label("Template variables", exact=True).fill("enable_thinking=false\nname=Ada")
    dialog.get_by_label("When the context is full", exact=True).select_option(label="Refuse")
    dialog.get_by_role("button", name="Save", exact=True).click()
    expect(dialog).to_have_count(0)
    assert history.chat(chat.id).settings == {
        "system": "Answer in French.",
        "temperature": 0.75,
        "max_tokens": 64,
        "stop": ["END\n", "STOP"],
        "template_var": {"enable_thinking": False, "name": "Ada"},
        "endless": False,
    }
    dialog = settings(page)
    expect(dialog.get_by_label("Stop texts", exact=True)).to_have_value("END\\n\nSTOP")
    expect(dialog.get_by_label("Template variables", exact=True)).to_have_value('enable_thinking=false\nname="Ada"')


@pytest.mark.parametrize(
    ("label", "text", "said"),
    [
        ("Temperature", "warm", "Temperature must be a number, got warm"),
        ("Template variables", "what", "Template variables are written name=value, got what"),
        ("Top p", "3", "`top_p` must be > 0 and <= 1, got 3"),
        ("Top k", "1.5", "top_k"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_in_a_line(
    open_page: PageAt, complaints: Complaints, chat: Chat, history: History, label: str, text: str, said: str
) -> None:
    complaints.allow("400")
    page = open_page(f"#/chat/{chat.id}")
    dialog = settings(page)
    dialog.get_by_label(label, exact=True).fill(text)
    dialog.get_by_role("button", name="Save", exact=True).click()
    expect(dialog.get_by_role("alert")).to_contain_text(said)
    assert history.chat(chat.id).settings == {}


def test_settings_of_a_chat_that_has_not_begun(open_page: PageAt) -> None:
    page = open_page()
    dialog = settings(page)
    expect(dialog).to_contain_text("For the next chat")
    dialog.get_by_label("Instructions").fill("Be brief.")
    dialog.get_by_role("button", name="Save", exact=True).click()
    expect(settings(page).get_by_label("Instructions")).to_have_value("Be brief.")


def test_presets_are_saved_used_and_deleted(open_page: PageAt, chat: Chat, history: History) -> None:
    page = open_page(f"#/chat/{chat.id}")
    dialog = settings(page)
    dialog.get_by_label("Temperature", exact=True).fill("0.1")
    dialog.get_by_label("Keep these settings under a name").fill("Exact")
    page.keyboard.press("Enter")
    expect(dialog.get_by_label("Preset", exact=True)).to_have_value("Exact")
    assert history.presets() == {"Exact": {"temperature": 0.1}}
    dialog.get_by_role("button", name="Cancel").click()
    assert history.chat(chat.id).settings == {}
    dialog = settings(page)
    dialog.get_by_label("Preset", exact=True).select_option("Exact")
    dialog.get_by_role("button", name="Use", exact=True).click()
    expect(dialog.get_by_label("Temperature", exact=True)).to_have_value("0.1")
    dialog.get_by_role("button", name="Delete the preset").click()
    expect(dialog.get_by_label("Preset", exact=True)).to_be_disabled()
    assert history.presets() == {}


# Export and import


def test_a_chat_is_exported_and_imported_again(open_page: PageAt, chat: Chat, history: History, tmp_path: Path) -> None:
    page = open_page(f"#/chat/{chat.id}")
    expect(page.locator(".chat-row")).to_have_count(1)
    page.get_by_role("button", name="Export and import").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="This chat as JSON").click()
    assert download.value.suggested_filename == "Counterpoint.json"
    file = tmp_path / "chat.json"
    download.value.save_as(file)
    assert "A form of counterpoint." in file.read_text()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("A JSON file").set_input_files(file)
    dialog.get_by_role("button", name="Import").click()
    expect(dialog.get_by_role("status")).to_contain_text("1 chat imported: Counterpoint.")
    assert [each.title for each in history.chats()] == ["Counterpoint", "Counterpoint"]
    dialog.get_by_role("link", name="Counterpoint").click()
    expect(dialog).to_have_count(0)
    page.wait_for_url(lambda url: "/chat/" in url and not url.endswith(chat.id))


def test_all_chats_are_exported_as_markdown(open_page: PageAt, chat: Chat, tmp_path: Path) -> None:
    page = open_page()
    page.get_by_role("button", name="Export and import").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="All chats as Markdown").click()
    assert download.value.suggested_filename == "partita-chats.md"
    download.value.save_as(tmp_path / "all.md")
    assert "What is a fugue?" in (tmp_path / "all.md").read_text()


@pytest.mark.parametrize(
    ("content", "said"), [("not json", "chats.json is not JSON"), (json.dumps({"a": 1}), ""), (None, "Choose a file")]
)
def test_a_file_that_is_no_export_is_refused_in_a_line(
    open_page: PageAt,
    complaints: Complaints,
    chat: Chat,
    history: History,
    tmp_path: Path,
    content: str | None,
    said: str,
) -> None:
    complaints.allow("400")
    page = open_page()
    page.get_by_role("button", name="Export and import").click()
    dialog = page.get_by_role("dialog")
    if content is not None:
        (tmp_path / "chats.json").write_text(content)
        dialog.get_by_label("A JSON file").set_input_files(tmp_path / "chats.json")
    dialog.get_by_role("button", name="Import").click()
    line = dialog.get_by_role("alert")
    expect(line).to_be_visible()
    expect(line).to_contain_text(said)
    assert "\n" not in line.inner_text()
    assert len(history.chats()) == 1


# Connect, about, keyboard


def test_connecting_shows_addresses_and_tools_that_there_are(open_page: PageAt) -> None:
    page = open_page()
    page.get_by_role("button", name="Connect a tool").click()
    dialog = page.get_by_role("dialog")
    origin = page.evaluate("location.origin")
    expect(dialog.locator(".copyable code").first).to_have_text(f"{origin}/v1")
    dialog.get_by_role("button", name="Copy the address for OpenAI's clients").click()
    expect(page.locator(".toast")).to_contain_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == f"{origin}/v1"
    listed = (
        dialog.get_by_label("Settings of a tool").locator("option").evaluate_all("all => all.map(each => each.value)")
    )
    assert listed == ["", *CLIENTS]
    dialog.get_by_label("Settings of a tool").select_option("codex")
    expect(dialog.locator(".tool")).to_contain_text("partita clients codex")
    expect(dialog.locator(".tool pre").first).to_contain_text(origin)


def test_about_says_where_the_history_is_and_how_to_keep_none(open_page: PageAt, history: History) -> None:
    page = open_page()
    page.get_by_role("button", name="About and colours").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text(str(history.file))
    expect(dialog).to_contain_text("partita chat --no-history")


def test_colours_are_kept(open_page: PageAt) -> None:
    page = open_page()
    page.emulate_media(color_scheme="light")
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(paper)
    page.get_by_role("button", name="About and colours").click()
    page.get_by_role("radio", name="Dark").check()
    dark = page.evaluate(paper)
    assert dark != light
    page.reload()
    page.wait_for_function("document.documentElement.dataset.theme === 'dark'")
    assert page.evaluate(paper) == dark
    page.get_by_role("button", name="About and colours").click()
    expect(page.get_by_role("radio", name="Dark")).to_be_checked()
    page.get_by_role("radio", name="Dark").press("ArrowLeft")
    expect(page.get_by_role("radio", name="Light")).to_be_checked()
    page.get_by_role("radio", name="System").check()
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(paper) == dark
