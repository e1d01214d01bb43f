"""Files for the next message as a person brings them: by the button, dropped, pasted; sizes, refusals, removal."""

from __future__ import annotations

import pytest
from playwright.sync_api import FilePayload, Page, expect

from partita_apps.history import History

from .conftest import Complaints, PageAt

NOTES: FilePayload = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"The fugue begins alone. " * 40}
PICTURE: FilePayload = {"name": "cat.png", "mimeType": "image/png", "buffer": b"\x89PNG\r\n\x1a\n" + bytes(range(256))}


def chips(page: Page):
    return page.get_by_role("list", name="Attached files").get_by_role("listitem")


@pytest.fixture
def opened(open_page: PageAt) -> Page:
    page = open_page()
    expect(page.get_by_role("button", name="Attach text files or PDFs")).to_be_visible()
    page.wait_for_function("document.querySelector('.model-button-name').textContent !== 'No model'")
    return page


def test_a_file_by_the_button_has_a_chip_and_can_be_removed(opened: Page) -> None:
    with opened.expect_file_chooser() as chooser:
        opened.get_by_role("button", name="Attach text files or PDFs").click()
    chooser.value.set_files(NOTES)
    expect(chips(opened)).to_have_count(1)
    expect(chips(opened)).to_contain_text("notes.txt")
    expect(chips(opened)).to_contain_text("960 bytes")
    expect(chips(opened)).to_contain_text("tokens")
    opened.get_by_role("button", name="Remove notes.txt").press("Enter")
    expect(chips(opened)).to_have_count(0)


def test_what_cannot_be_read_is_refused_in_a_line_that_goes(opened: Page, complaints: Complaints) -> None:
    complaints.allow("400")
    opened.set_input_files('.composer input[type="file"]', [NOTES, PICTURE])
    line = opened.locator(".refusals .error")
    expect(line).to_have_count(1)
    expect(line).to_contain_text("cat.png")
    assert "\n" not in line.locator("span").inner_text()
    expect(chips(opened)).to_have_count(1)
    opened.get_by_role("button", name="Dismiss what is said of cat.png").click()
    expect(line).to_have_count(0)


def test_a_file_that_is_too_large_is_refused_before_it_is_read(opened: Page) -> None:
    limit = opened.evaluate(
        """async () => {
            const headers = {"x-partita-page": localStorage.getItem("partita.token")};
            return (await (await fetch("/app/state", {headers})).json()).limits.attachment_bytes;
        }"""
    )
    opened.evaluate(
        """size => {
            const files = new DataTransfer();
            files.items.add(new File([new Uint8Array(size)], "huge.txt", {type: "text/plain"}));
            document.querySelector(".composer input[type=file]").files = files.files;
            document.querySelector(".composer input[type=file]").dispatchEvent(new Event("change"));
        }""",
        limit + 1,
    )
    expect(opened.locator(".refusals .error")).to_contain_text("huge.txt: it has")
    expect(chips(opened)).to_have_count(0)


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_files_are_dropped_and_pasted(opened: Page, way: str) -> None:
    opened.evaluate(
        """way => {
            const files = new DataTransfer();
            files.items.add(new File(["some text to read"], "dropped.md", {type: "text/markdown"}));
            const target = document.querySelector("#composer");
            const init = {bubbles: true, cancelable: true};
            const pasted = new ClipboardEvent("paste", {...init, clipboardData: files});
            if (way === "paste") return target.dispatchEvent(pasted);
            target.dispatchEvent(new DragEvent("dragenter", {...init, dataTransfer: files}));
            if (!document.querySelector(".main.dropping")) throw new Error("nothing says where to drop");
            target.dispatchEvent(new DragEvent("drop", {...init, dataTransfer: files}));
        }""",
        way,
    )
    expect(chips(opened)).to_have_count(1)
    expect(chips(opened)).to_contain_text("dropped.md")
    expect(opened.locator(".main.dropping")).to_have_count(0)


def test_pasted_text_stays_text(opened: Page) -> None:
    opened.get_by_role("textbox", name="Message").focus()
    opened.evaluate("navigator.clipboard.writeText('only words')")
    opened.keyboard.press("Control+V")
    expect(opened.get_by_role("textbox", name="Message")).to_have_value("only words")
    expect(chips(opened)).to_have_count(0)


def test_a_hostile_name_is_text(opened: Page) -> None:
    name = "<img src=x onerror=alert(1)>.txt"
    opened.set_input_files(
        '.composer input[type="file"]', [FilePayload(name=name, mimeType="text/plain", buffer=b"text")]
    )
    expect(opened.locator(".chip-name")).to_have_text(name)
    assert opened.locator(".chips img").count() == 0


def test_one_file_too_many_is_refused(opened: Page) -> None:
    files = [FilePayload(name=f"{i}.txt", mimeType="text/plain", buffer=b"text") for i in range(21)]
    opened.set_input_files('.composer input[type="file"]', files)
    expect(chips(opened)).to_have_count(20)
    expect(opened.locator(".refusals .error")).to_contain_text("20.txt: at most 20 files")


def test_a_file_goes_with_the_message(opened: Page, history: History) -> None:
    opened.set_input_files('.composer input[type="file"]', [NOTES])
    expect(chips(opened)).to_contain_text("tokens")
    opened.get_by_role("textbox", name="Message").fill("What are these notes about?")
    opened.keyboard.press("Enter")
    expect(opened.locator(".message.user")).to_contain_text("notes.txt")
    expect(chips(opened)).to_have_count(0)
    expect(opened.locator(".message.user")).to_contain_text("What are these notes about?")
    (chat,) = history.chats()
    asked = history.messages(chat.id)[0]
    assert [(each["name"], each["text"]) for each in asked.attachments] == [("notes.txt", NOTES["buffer"].decode())]
