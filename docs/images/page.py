"""The pictures of the page: light, dark, the inspector, a phone; the default model answers, served for real.

    python docs/images/page.py          writes page-light.png, page-dark.png, page-inspector.png and page-phone.png

Replies are greedy, so that the same model says the same; what a machine draws differently are its fonts and the figures
of speed. The history is a new one, which goes with the script.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

from partita_apps.serve.app import token
from partita_apps.serve.listen import listening

ROOT = Path(__file__).parents[2]
PLACE = Path(__file__).parent
MODEL = "smollm2-135m"
QUESTIONS = (
    "What is a fugue in music? Answer in three short sentences.",
    "Write a Python function fib(n) that returns the n-th Fibonacci number, and explain it.",
)
OTHERS = (("Bread with less yeast", ""), ("Regular expressions for dates", "Work"), ("Notes of the meeting", "Work"))
SETTINGS = {"temperature": 0.0, "max_tokens": 300}
WIDE, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 780}


@contextmanager
def server(data: Path) -> Iterator[str]:
    """The address of `partita serve` with the default model alone."""
    with listening("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
    command = [sys.executable, "-m", "partita_apps.cli", "serve", MODEL, "--only", f"--port={port}"]
    with (data / "log").open("w") as log:
        process = subprocess.Popen(command, env={**os.environ, "PARTITA_DATA": str(data)}, stdout=log, stderr=log)
    url, until = f"http://127.0.0.1:{port}", time.monotonic() + 300
    try:
        while not _answers(url):
            if process.poll() is not None or time.monotonic() > until:
                sys.exit(f"the server does not start:\n{(data / 'log').read_text()}")
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as found:
            return found.status == 200
    except OSError:
        return False


def post(url: str, own: str, path: str, document: Any) -> Any:
    headers = {"content-type": "application/json", "x-partita-page": own}
    with urllib.request.urlopen(urllib.request.Request(url + path, json.dumps(document).encode(), headers)) as found:
        return json.load(found)


def opened(browser: Browser, url: str, own: str, path: str, theme: Any, size: Any) -> Page:
    context = browser.new_context(viewport=size, color_scheme=theme, reduced_motion="reduce")
    page = context.new_page()
    page.goto(token.link(url, own))
    page.get_by_role("textbox", name="Message").wait_for()
    page.goto(f"{url}/{path}")
    page.locator(".message").first.wait_for()
    page.wait_for_timeout(1000)
    return page


def ask(browser: Browser, url: str, own: str, chat: str) -> None:
    context = browser.new_context(viewport=WIDE)
    page = context.new_page()
    page.goto(token.link(url, own))
    page.get_by_role("textbox", name="Message").wait_for()
    page.goto(f"{url}/#/chat/{chat}")
    for i, question in enumerate(QUESTIONS):
        box = page.get_by_role("textbox", name="Message")
        box.fill(question)
        box.press("Enter")
        page.locator(".message").nth(2 * i + 1).wait_for()
        page.locator("button.stop").wait_for(state="hidden", timeout=300_000)
    context.close()


def shoot(page: Page, name: str) -> None:
    """As a PNG of 256 colours, which is a third of the size."""
    from PIL import Image

    path = PLACE / f"page-{name}.png"
    page.screenshot(path=path)
    with Image.open(path) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size >> 10} KiB")


def main() -> None:
    found = subprocess.run(
        [ROOT / ".ci/browser"], env={**os.environ, "PYTHON_IN_VENV": sys.executable}, stdout=subprocess.PIPE, text=True
    )
    if found.returncode:
        sys.exit(found.returncode)
    arguments = ["--no-sandbox"] if os.getuid() == 0 else []
    with tempfile.TemporaryDirectory() as place, server(Path(place)) as url, sync_playwright() as playwright:
        own = token.read(Path(place))
        assert own is not None
        browser = playwright.chromium.launch(executable_path=found.stdout.strip(), args=arguments)
        for title, folder in OTHERS:
            post(url, own, "/app/chats", {"title": title, "folder": folder})
        chat = post(url, own, "/app/chats", {"title": "Fugues and Fibonacci", "settings": SETTINGS})["id"]
        ask(browser, url, own, chat)
        for name, theme, size in (("light", "light", WIDE), ("dark", "dark", WIDE), ("phone", "light", PHONE)):
            shoot(opened(browser, url, own, f"#/chat/{chat}", theme, size), name)
        reply = opened(browser, url, own, f"#/chat/{chat}", "light", WIDE).locator(".message").nth(1)
        page = opened(browser, url, own, f"#/chat/{chat}/inspect/{reply.get_attribute('data-id')}", "light", WIDE)
        page.locator("#inspector").wait_for()
        page.get_by_role("button", name="Next unlikely token").click()
        page.wait_for_timeout(1000)
        shoot(page, "inspector")
        browser.close()


if __name__ == "__main__":
    main()
