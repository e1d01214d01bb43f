"""A browser, and pages of a server in this process.

A page fails its test by whatever the browser complains of: errors in its console, what its policy forbids, requests
that fail or would leave this machine.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from filelock import FileLock
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

from partita_apps.history import History

from ..serve.conftest import form_model, registry, served  # noqa: F401
from ..serve.served import Served

ROOT = Path(__file__).parents[3]
PageAt = Callable[..., Page]
_VIOLATION = """document.addEventListener("securitypolicyviolation", (event) =>
    console.error("policy", event.violatedDirective, event.blockedURI));"""


@pytest.fixture(scope="session")
def browser_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """As `make test` finds it. Of several processes one installs."""
    with FileLock(tmp_path_factory.getbasetemp().parent / "browser.lock"):
        found = subprocess.run(
            [ROOT / ".ci/browser"],
            env={**os.environ, "PYTHON_IN_VENV": sys.executable},
            capture_output=True,
            text=True,
        )
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


@pytest.fixture(scope="module")  # while it lives its event loop does, which other modules' would meet
def browser(browser_path: str) -> Iterator[Browser]:
    """It resolves no name but those of the loopback."""
    arguments = ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"]
    if hasattr(os, "getuid") and os.getuid() == 0:
        arguments.append("--no-sandbox")  # Chromium has none for root
    expect.set_options(timeout=20_000)  # milliseconds
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=arguments)
        yield browser
        browser.close()


class Complaints:
    """Of all pages of a test. allow: what a test provokes, as a pattern of its text."""

    def __init__(self) -> None:
        self._found: list[str] = []
        self._allowed: list[str] = []

    def allow(self, pattern: str) -> None:
        self._allowed.append(pattern)

    @property
    def unexpected(self) -> list[str]:
        return [text for text in self._found if not any(re.search(pattern, text) for pattern in self._allowed)]

    def watch(self, page: Page) -> None:
        page.on("console", self._console)
        page.on("pageerror", lambda error: self._found.append(f"error: {error}"))
        page.on("request", self._request)
        page.on("requestfailed", self._failed)
        page.add_init_script(_VIOLATION)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self._found.append(f"console: {message.text} ({message.location.get('url', '')})")

    def _request(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.hostname != "127.0.0.1" and parts.scheme not in ("data", "blob"):
            self._found.append(f"leaves the machine: {request.url}")

    def _failed(self, request: Request) -> None:
        if request.failure != "net::ERR_ABORTED":  # by the page itself, or because it was left
            self._found.append(f"failed: {request.url}: {request.failure}")


@pytest.fixture
def complaints() -> Iterator[Complaints]:
    made = Complaints()
    yield made
    assert made.unexpected == []


@pytest.fixture
def page_at(
    browser: Browser,
    data: Path,
    complaints: Complaints,
    served: Callable[..., Served],  # noqa: F811  (servers end behind their pages)
) -> Iterator[PageAt]:
    """page_at(server, path="#/", width=1280, theme="light", locked=False, **context): a page in a profile of its own.

    locked: without the page's token. context: of playwright's `new_context`.
    """
    contexts = []

    def make(
        server: Served | str,
        path: str = "#/",
        *,
        width: int = 1280,
        height: int = 800,
        theme: Any = "light",
        locked: bool = False,
        **context: Any,
    ) -> Page:
        url = server if isinstance(server, str) else server.url
        contexts.append(
            browser.new_context(
                viewport={"width": width, "height": height},
                color_scheme=theme,
                permissions=["clipboard-read", "clipboard-write"],
                **context,
            )
        )
        page = contexts[-1].new_page()
        page.set_default_timeout(30_000)
        complaints.watch(page)
        if not locked:
            from partita_apps.serve.app import token

            own = token.read(data)
            assert own is not None, "the server has no data folder: served(…, data=data)"
            page.goto(token.link(url, own))
            page.wait_for_function("location.hash.startsWith('#token=') === false")
        page.goto(f"{url}/{path}")
        return page

    yield make
    for each in contexts:
        each.close()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The data folder of the server: its history, and the page's token."""
    return tmp_path / "data"


@pytest.fixture
def history(data: Path) -> Iterator[History]:
    """That of the server, as another process would open it."""
    data.mkdir(mode=0o700, exist_ok=True)
    opened = History.open(data / "history.sqlite3")
    yield opened
    opened.close()


@pytest.fixture
def url(served: Callable[..., Served], data: Path) -> str:  # noqa: F811
    """Of a server with the model `tiny`, which says hello."""
    return served(data=data).url


@pytest.fixture
def open_page(page_at: PageAt, url: str) -> PageAt:
    """open_page(path="#/", **more): `page_at` that server."""
    return lambda path="#/", **more: page_at(url, path, **more)


@pytest.fixture
def axe() -> Callable[[Page], list[str]]:
    """axe(page): what axe finds serious or critical, a line each."""

    def find(page: Page) -> list[str]:
        found = Axe().run(page).response["violations"]
        return [
            f"{each['impact']} {each['id']}: {node['html'][:200]} ({node['failureSummary'].splitlines()[-1].strip()})"
            for each in found
            if each["impact"] in ("serious", "critical")
            for node in each["nodes"]
        ]

    return find
