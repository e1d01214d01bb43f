"""What a person feels of the page, in a real browser: first paint, opening and scrolling a long chat, and how long the
page is deaf while a long reply comes.

The page, the server and the history are the real ones, the model is scripted (`page_server`). A frame is the time
between two of the browser's; a task is of its main thread, as PerformanceObserver reports those above 50 ms. Every run
has a fresh profile, and the server's thread shares this process: a reply's tasks are the page's alone.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from partita.errors import BackendUnavailable

from . import page_server
from .report import row

_WATCH = """
window.bench = {tasks: [], frames: []};
new PerformanceObserver((list) => list.getEntries().forEach((entry) => bench.tasks.push(entry.duration)))
  .observe({type: "longtask", buffered: true});
(function frame(now) {
  if (bench.last) bench.frames.push(now - bench.last);
  bench.last = now;
  requestAnimationFrame(frame);
})();
"""
_TAKE = """() => {
  const {tasks, frames} = bench;
  Object.assign(bench, {tasks: [], frames: []});
  return {tasks, frames};
}"""
_OPEN = """async ([hash, last]) => {
  const begun = performance.now();
  location.hash = hash;
  const there = () => document.querySelector(`.message[data-id="${last}"]`)?.getBoundingClientRect().height > 0;
  while (!there()) await new Promise(requestAnimationFrame);
  await new Promise(requestAnimationFrame);
  return performance.now() - begun;
}"""
_NAMES = ("chromium", "chromium-browser", "google-chrome")
_WHEELS, _STEP = 60, 900  # turns of the wheel, and pixels of each


def run(*, model: Path, runs: int, turns: int, tokens: int, rate: int, browser: str | None) -> list[dict[str, Any]]:
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        raise BackendUnavailable(
            "playwright, which measures the page, is not installed: pip install playwright"
        ) from None

    found: dict[str, list[float]] = defaultdict(list)
    arguments = ["--enable-precise-memory-info"]
    if hasattr(os, "getuid") and os.getuid() == 0:
        arguments.append("--no-sandbox")  # Chromium has none for root
    with tempfile.TemporaryDirectory() as place:
        data = Path(place)
        models = page_server.registry(model, page_server.markdown(max(tokens // 250, 1)), rate)
        with page_server.serving(models, data) as url, sync_playwright() as playwright:
            chats = page_server.seed(data, turns, [tokens] * runs)
            try:
                chromium = playwright.chromium.launch(executable_path=_browser(browser), args=arguments)
                for empty in chats.empty:
                    for name, value in _once(chromium, url, data, chats, empty, tokens / rate).items():
                        found[name].append(value)
            except Error as error:
                raise BackendUnavailable(f"the browser failed: {str(error).splitlines()[0]}") from None
    return [_row(name, values, turns, tokens, rate) for name, values in found.items()]


def _row(name: str, values: list[float], turns: int, tokens: int, rate: int) -> dict[str, Any]:
    name, _, unit = name.rpartition(", ")
    shown = name.replace("LONG", f"a chat of {turns:,} turns")
    shown = shown.replace("REPLY", f"a reply of {tokens:,} tokens at {rate:,}/s")
    return row(shown, statistics.median(values), None, unit)


def _once(browser: Any, url: str, data: Path, chats: page_server.Chats, empty: str, seconds: float) -> dict[str, float]:
    from ..serve.app import token

    own = token.read(data)
    assert own is not None
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.add_init_script(_WATCH)
    try:
        page = context.new_page()
        page.goto(token.link(url, own))
        page.get_by_role("textbox", name="Message").wait_for()
        page.close()
        page = context.new_page()
        page.goto(url)
        page.get_by_role("textbox", name="Message").wait_for()
        page.wait_for_timeout(500)
        paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        return {"first paint, ms": paint, **_long_chat(page, chats), **_reply(page, empty, seconds)}
    finally:
        context.close()


def _long_chat(page: Any, chats: page_server.Chats) -> dict[str, float]:
    page.evaluate(_TAKE)
    opened = page.evaluate(_OPEN, [f"#/chat/{chats.long}", chats.last])
    page.wait_for_timeout(1000)
    tasks = page.evaluate(_TAKE)["tasks"]
    page.mouse.move(700, 400)
    for _ in range(_WHEELS):
        page.mouse.wheel(0, -_STEP)
        page.wait_for_timeout(30)
    scrolled = page.evaluate(_TAKE)
    return {
        "LONG opens, ms": opened,
        "LONG opens: longest task, ms": max(tasks, default=0),
        "LONG scrolls: median frame, ms": statistics.median(scrolled["frames"]),
        "LONG scrolls: 99th percentile of frames, ms": percentile(scrolled["frames"], 0.99),
        "LONG scrolls: longest task, ms": max(scrolled["tasks"], default=0),
    }


def _reply(page: Any, chat: str, seconds: float) -> dict[str, float]:
    page.evaluate("hash => { location.hash = hash; }", f"#/chat/{chat}")
    page.locator(".message").first.wait_for(state="detached")
    page.evaluate(_TAKE)
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    before = _busy(session)
    box = page.get_by_role("textbox", name="Message")
    box.fill("Tell me everything about fugues.")
    box.press("Enter")
    stop = page.locator("button.stop")
    stop.wait_for()
    stop.wait_for(state="hidden", timeout=1000 * (seconds * 5 + 120))
    page.wait_for_timeout(500)
    seen = page.evaluate(_TAKE)
    return {
        "REPLY: longest task, ms": max(seen["tasks"], default=0),
        "REPLY: tasks above 50 ms, tasks": len(seen["tasks"]),
        "REPLY: 99th percentile of frames, ms": percentile(seen["frames"], 0.99),
        "REPLY: processor time of the page's main thread, s": _busy(session) - before,
        "REPLY: memory of the page's objects after it, MiB": page.evaluate("performance.memory.usedJSHeapSize") / 2**20,
    }


def _busy(session: Any) -> float:
    """Seconds of processor time that the page's main thread has worked."""
    return {each["name"]: each["value"] for each in session.send("Performance.getMetrics")["metrics"]}["TaskDuration"]


def percentile(values: list[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * part), len(ordered) - 1)] if ordered else 0.0


def _browser(given: str | None) -> str:
    """The path of one: given, or as the tests' are found in a checkout, or of this system."""
    finder = Path(__file__).parents[3] / ".ci/browser"
    if given is None and finder.is_file():
        done = subprocess.run(
            [finder], env={**os.environ, "PYTHON_IN_VENV": sys.executable}, capture_output=True, text=True
        )
        if done.returncode:
            raise BackendUnavailable(done.stderr.strip().splitlines()[-1].removeprefix("partita: "))
        given = done.stdout.strip()
    if given is not None and shutil.which(given) is None:
        raise BackendUnavailable(f"{given} is no program: name a Chromium or Chrome with --browser, or leave it out")
    found = given or next((path for name in _NAMES if (path := shutil.which(name))), None)
    if found is None:
        raise BackendUnavailable(
            "no Chromium or Chrome is on this system: install chromium, or name one with --browser"
        )
    return found
