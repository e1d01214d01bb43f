"""Every route of the page: who may use it, what it takes, what it refuses in one line."""

from __future__ import annotations

import base64
import json
import re
import stat
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from partita_apps.history import History
from partita_apps.serve.app import token
from partita_apps.serve.security import OPEN, is_open
from partita_apps.serve.server import ENDPOINTS

from ..scripted import Script
from ..served import Served
from .page import HEADER, Page

Make = Callable[..., Page]
ROUTES = [(each.method, each.path) for each in ENDPOINTS if each.path.startswith("/app")]


def filled(path: str) -> str:
    return re.sub(r"{\w+(:path)?}", "x", path)


# ---------------------------------------------------------------- the token


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_no_route_without_the_token(served: Callable[..., Served], method: str, path: str) -> None:
    server = served(api_key="secret")
    body = {} if method == "POST" else None
    for headers in (
        {},
        {HEADER: ""},
        {HEADER: "x" * len(server.token)},
        {HEADER: server.token[:-1]},
        {"authorization": f"Bearer {server.token}"},
        {"x-api-key": "secret"},
        {"cookie": f"{HEADER}={server.token}"},
    ):
        answer = server.ask(method, filled(path), body, headers)
        assert answer.status == 401
        assert set(answer.json["error"]) == {"message", "type", "field"}
        assert "partita serve --open" in answer.json["error"]["message"]
    for headers in ({"origin": "https://evil.example"}, {"sec-fetch-site": "same-site"}, {"host": "evil.example"}):
        assert server.ask(method, filled(path), body, {HEADER: server.token, **headers}).status == 403


def test_the_token_alone_suffices_where_there_is_a_key(page: Make) -> None:
    here = page(api_key="secret")
    assert here.get("/app/state")["needs_key"]
    assert here.server.get("/v1/models", here.headers).status == 401
    assert here.server.ask("GET", "/app/nothing", None, here.headers).status == 404
    assert here.server.ask("GET", "//app//state/").status == 401


def test_what_is_open_is_listed_and_tells_nothing(served: Callable[..., Served]) -> None:
    server = served(api_key="secret")
    paths = [filled(each.path) for each in ENDPOINTS if each.method == "GET"]
    opened = {path for path in paths if server.get(path).status != 401}
    assert opened == {path for path in paths if is_open("GET", path)} == {*OPEN, "/page/x"}
    assert not any(is_open("POST", path) for path in opened)


def test_the_token_is_kept_and_private(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    first = token.ensure(folder)
    assert token.ensure(folder) == first == token.read(folder)
    assert stat.S_IMODE((folder / token.NAME).stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (folder / token.NAME).write_text("rubbish")
    assert token.read(folder) is None
    assert token.ensure(folder) != first
    assert token.link("http://127.0.0.1:1234", "T") == "http://127.0.0.1:1234/#token=T"


# ---------------------------------------------------------------- the files


def test_files_of_the_page(served: Callable[..., Served]) -> None:
    server = served()
    answer = server.get("/")
    policy = dict(part.partition(" ")[::2] for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert (policy["require-trusted-types-for"], policy["trusted-types"]) == ("'script'", "partita")
    assert not re.search(rb"<script(?! type=\"module\" src=)|\son\w+=|\sstyle=", answer.body)
    for path in set(re.findall(r"(?:src|href)=\"(/[^\"]+)\"", answer.body.decode())):
        found = server.get(path)
        assert found.status == 200, path
        assert "content-security-policy" in found.headers
        again = server.get(path, {"if-none-match": found.headers["etag"], "range": "bytes=0-1"})
        assert (again.status, again.body) == (304, b"")
    assert server.get("/page/js/main.js").headers["content-type"].startswith("text/javascript")
    assert server.get("/manifest.webmanifest").headers["content-type"].startswith("application/manifest+json")


@pytest.mark.parametrize(
    "name",
    [
        *("", "static.py", "__init__.py", "js", "js/none.js", "../security.py", "..%2fsecurity.py"),
        *("%2e%2e/app/run.py", "js/%2e%2e/index.html", "/etc/passwd", "index.html%00.js", "js%5cmain.js"),
    ],
)
def test_no_other_file(served: Callable[..., Served], name: str) -> None:
    assert served().get(f"/page/{name}").status == 404


# ---------------------------------------------------------------- chats


def test_chats_from_their_beginning_to_their_end(page: Make, tmp_path: Path) -> None:
    here = page(data=tmp_path)
    assert here.get("/app/chats") == {"chats": [], "folders": [], "more": None}
    chat = here.post("/app/chats", {"folder": "work", "settings": {"temperature": 0.5, "seed": None}})
    assert (chat["model"], chat["settings"], chat["title"]) == ("tiny", {"temperature": 0.5}, "")
    ident = chat["id"]
    reply = here.reply(ident, "what is a fox?")
    found = here.get(f"/app/chats/{ident}")
    assert found["chat"]["title"] == "what is a fox?"
    assert found["chat"]["leaf"] == reply["id"]
    changed = here.post(f"/app/chats/{ident}", {"title": "Fox", "pinned": True, "leaf": reply["parent"]})
    assert (changed["title"], changed["pinned"], changed["leaf"]) == ("Fox", True, reply["parent"])
    assert here.get("/app/chats?folder=work")["chats"][0]["title"] == "Fox"
    assert here.get("/app/chats?folder=other")["chats"] == []
    branched = here.post(f"/app/messages/{reply['id']}/branch")
    assert len(here.get(f"/app/chats/{branched['id']}")["messages"]) == 2
    assert [hit["chat"] for hit in here.get("/app/search?q=quick+fox")["hits"]]
    here.post(f"/app/chats/{ident}/delete")
    assert [each["id"] for each in here.get("/app/chats?deleted=true")["chats"]] == [ident]
    assert here.refused("POST", f"/app/chats/{ident}/runs", {"do": "send", "text": "x"})[0] == 409
    here.post(f"/app/chats/{ident}/restore")
    here.post(f"/app/chats/{ident}/erase")
    assert here.refused("GET", f"/app/chats/{ident}")[0] == 404
    state = here.get("/app/state")
    assert state["history"] == {"path": str(tmp_path / "history.sqlite3"), "on": True}


def test_many_chats_come_in_parts(page: Make, tmp_path: Path) -> None:
    here = page(data=tmp_path)
    with closing(History.open(tmp_path / "history.sqlite3")) as history:
        made = {history.create(model="tiny", title=str(i)).id for i in range(205)}
    first = here.get("/app/chats")
    rest = here.get(f"/app/chats?before={quote(first['more'])}")
    assert (len(first["chats"]), len(rest["chats"]), rest["more"]) == (200, 5, None)
    assert {each["id"] for each in (*first["chats"], *rest["chats"])} == made


def test_a_server_without_a_history_keeps_nothing(page: Make, tmp_path: Path) -> None:
    here = page(data=tmp_path, history=False)
    here.reply(here.chat())
    assert here.get("/app/state")["history"] == {"path": None, "on": False}
    assert [path.name for path in tmp_path.iterdir()] == ["page-token"]


def test_a_long_chat_is_rendered_in_pieces(page: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is shown last comes first; asked again and again, all of it is there."""
    from partita_apps.serve.app import documents

    here = page(data=tmp_path)
    with closing(History.open(tmp_path / "history.sqlite3")) as history:
        chat = history.create(model="tiny")
        leaf = None
        for i in range(20):
            leaf = history.add(chat.id, parent=leaf, role="assistant" if i % 2 else "user", content=f"*{i}*").id
    monkeypatch.setattr(documents, "SECONDS", -1)
    assert all(each["html"] is None for each in here.get(f"/app/chats/{chat.id}")["messages"])
    monkeypatch.setattr(documents, "SECONDS", 60)
    found = here.get(f"/app/chats/{chat.id}")["messages"]
    assert [each["html"] for each in found] == [f"<p><em>{i}</em></p>\n" for i in range(20)]
    monkeypatch.setattr(documents, "SECONDS", -1)
    assert here.get(f"/app/chats/{chat.id}")["messages"] == found


WRONG: list[tuple[str, str, Any, int, str | None]] = [
    ("GET", "/app/chats/none", None, 404, None),
    ("POST", "/app/chats/none", {"title": "x"}, 404, None),
    ("POST", "/app/chats/none/runs", {"do": "send", "text": "x"}, 404, None),
    ("POST", "/app/chats/none/delete", {}, 404, None),
    ("POST", "/app/messages/none/branch", {}, 404, None),
    ("GET", "/app/messages/none/trace", None, 404, None),
    ("GET", "/app/runs/none/events", None, 404, None),
    ("POST", "/app/runs/none/stop", {}, 404, None),
    ("GET", "/app/chats?before=x", None, 400, "before"),
    ("GET", "/app/messages/none/trace?from=-1", None, 400, "from"),
    ("GET", f"/app/search?q={'x' * 501}", None, 400, "q"),
    ("GET", "/app/export?format=pdf", None, 400, "format"),
    ("GET", "/app/export?chat=none", None, 404, None),
    ("GET", "/app/clients/none", None, 404, None),
    ("GET", "/app/defaults?model=none", None, 404, None),
    ("POST", "/app/chats", {"model": "none"}, 404, None),
    ("POST", "/app/chats", {"title": "x" * 1001}, 400, "title"),
    ("POST", "/app/chats", {"settings": {"temperature": -1}}, 400, "temperature"),
    ("POST", "/app/chats", {"settings": {"temperature": "hot"}}, 400, "temperature"),
    ("POST", "/app/chats", {"settings": {"odd": 1}}, 400, "settings"),
    ("POST", "/app/chats", {"settings": {"endless": "yes"}}, 400, "endless"),
    ("POST", "/app/chats", {"settings": {"system": "x" * (1 << 20)}}, 400, "settings"),
    ("POST", "/app/chats", {"settings": {"template_var": {"tools": []}}}, 400, "template_var"),
    ("POST", "/app/import", {"document": {}}, 400, None),
    ("POST", "/app/import", {"document": {"partita_history": 9}}, 400, None),
    ("POST", "/app/import", {}, 400, "document"),
    ("POST", "/app/presets", {"name": "", "settings": {}}, 400, "name"),
    ("POST", "/app/presets", {"name": "x", "settings": {"top_p": 7}}, 400, "top_p"),
    ("POST", "/app/presets/drop", {"name": "none"}, 404, None),
    ("POST", "/app/models/load", {"model": "none"}, 404, None),
    ("POST", "/app/models/unload", {"model": "../x"}, 404, None),
    ("POST", "/app/attachments", {"name": "a.txt", "data": "?"}, 400, "data"),
    ("POST", "/app/attachments", {"name": "a.txt", "data": ""}, 400, None),
    ("POST", "/app/attachments", {"name": "a.png", "data": base64.b64encode(b"\x89PNG123").decode()}, 400, None),
    ("POST", "/app/attachments", {"name": "x" * 301, "data": "eA=="}, 400, "name"),
]


@pytest.mark.parametrize(("method", "path", "body", "status", "field"), WRONG)
def test_what_is_refused(page: Make, method: str, path: str, body: Any, status: int, field: str | None) -> None:
    found, error = page().refused(method, path, body)
    assert found == status, error
    assert error["message"]
    assert "\n" not in error["message"]
    if field is not None:
        assert error["field"] == field


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"do": "sing"}, "do"),
        ({"do": "send", "text": "  "}, "text"),
        ({"do": "send", "text": "x", "parent": "none"}, None),
        ({"do": "send", "text": "x" * ((4 << 20) + 1)}, "text"),
        ({"do": "send", "text": "x", "attachments": [{"name": "a"}]}, "attachments[0].text"),
        ({"do": "send", "text": "x", "attachments": [{"name": "a", "text": ""}] * 21}, "attachments"),
        ({"do": "send", "text": "x", "attachments": [{"name": "a", "message": "QUESTION"}]}, "attachments[0]"),
        ({"do": "again"}, "message"),
        ({"do": "again", "message": "REPLY"}, "message"),
        ({"do": "continue", "message": "QUESTION"}, "message"),
        ({"do": "token", "message": "REPLY"}, "position"),
        ({"do": "token", "message": "REPLY", "position": 0}, "token"),
        ({"do": "token", "message": "REPLY", "position": 99, "token": 1}, "position"),
        ({"do": "token", "message": "REPLY", "position": -1, "token": 1}, "position"),
        ({"do": "again", "message": "OTHER"}, "message"),
    ],
)
def test_runs_that_cannot_be(page: Make, body: Any, field: str | None) -> None:
    here = page()
    chat, other = here.chat(), here.chat()
    reply, foreign = here.reply(chat), here.reply(other)
    names = {"REPLY": reply["id"], "QUESTION": reply["parent"], "OTHER": foreign["parent"]}
    text = json.dumps(body)
    for name, ident in names.items():
        text = text.replace(name, ident)
    status, error = here.refused("POST", f"/app/chats/{chat}/runs", text.encode())
    assert status in (400, 404)
    if field is not None:
        assert error["field"] == field
    assert len(here.get(f"/app/chats/{chat}")["messages"]) == 2, "nothing was written"
    assert here.reply(chat)["state"] == "done", "the chat is free"


def test_a_token_that_the_model_has_not_is_the_end_of_its_run(page: Make) -> None:
    here = page()
    chat = here.chat()
    body = {"do": "token", "message": here.reply(chat)["id"], "position": 1, "token": 10**6}
    end = here.told(here.post(f"/app/chats/{chat}/runs", body)["run"])[-1].data
    assert (end["state"], end["error"]["field"]) == ("failed", "begins")


# ---------------------------------------------------------------- the rest


def test_the_state(page: Make) -> None:
    here = page()
    here.server.registry.adapters = ("poet",)
    state = here.get("/app/state")
    assert [model["id"] for model in state["models"]] == ["tiny", "tiny:poet"]
    assert (state["models"][0]["predicted"], state["models"][0]["free"]) == (3000, 1 << 33)
    assert (state["default_model"], state["url"], state["runs"]) == ("tiny", here.server.url, [])
    assert state["limits"]["attachment_bytes"] > 1 << 20
    assert {"name", "title", "api", "tested", "command"} == set(state["clients"][0])
    tool = here.get(f"/app/clients/{state['clients'][0]['name']}")
    assert here.server.url in json.dumps(tool)
    defaults = here.get("/app/defaults?model=tiny:poet")["defaults"]
    assert (defaults["max_tokens"]["value"], defaults["endless"]["value"], "temperature" in defaults) == (
        512,
        True,
        True,
    )


def test_models_are_loaded_and_unloaded(page: Make) -> None:
    here = page(Script("the", holds=True))
    assert here.post("/app/models/load", {"model": "tiny"})["state"] == "loaded"
    here.post("/app/models/unload", {"model": "tiny"})
    assert here.server.registry.unloaded == ["tiny"]
    run = here.send(here.chat())["run"]
    with here.listening(f"/app/runs/{run}/events") as events:
        next(event for event in events if event.kind in ("text", "tokens"))
        assert here.refused("POST", "/app/models/unload", {"model": "tiny"})[0] == 409
    here.post(f"/app/runs/{run}/stop")


def test_presets(page: Make) -> None:
    here = page()
    assert here.post("/app/presets", {"name": "calm", "settings": {"temperature": 0}})["presets"] == {
        "calm": {"temperature": 0}
    }
    assert here.get("/app/state")["presets"] == {"calm": {"temperature": 0}}
    assert here.post("/app/presets/drop", {"name": "calm"})["presets"] == {}


def test_an_export_is_imported_whole(page: Make) -> None:
    here = page(Script("the **fox** </script>"))
    chat = here.chat(folder="a", title="<b>")
    first = here.reply(chat, "one")
    here.told(here.post(f"/app/chats/{chat}/runs", {"do": "again", "message": first["parent"]})["run"])
    here.reply(here.chat(), "two")
    document = here.get("/app/export")
    assert len(document["chats"]) == 2
    assert len(here.get(f"/app/export?chat={chat}")["chats"]) == 1
    copies = here.post("/app/import", {"document": document})["chats"]
    again = here.get("/app/export")
    assert len(again["chats"]) == 4
    own = next(each for each in copies if each["title"] == "<b>")
    found = here.get(f"/app/chats/{own['id']}")["messages"]
    assert [each["content"] for each in found] == ["one", *["the **fox** </script>"] * 2]
    assert "<script" not in found[1]["html"]
    answer = here.server.get(f"/app/export?chat={chat}&format=markdown", here.headers)
    assert answer.headers["content-type"].startswith("text/markdown")
    assert b"# <b>" in answer.body
    assert here.server.get("/app/export?format=markdown", here.headers).body.count(b"\n---\n") == 3


def test_files_become_text(page: Make) -> None:
    data = base64.b64encode("größer\n".encode()).decode()
    found = page().post("/app/attachments", {"name": "a.txt", "data": data})
    assert (found["name"], found["text"].strip(), found["characters"]) == ("a.txt", "größer", len(found["text"]))


def test_all_pages_are_told_what_changes(page: Make, tmp_path: Path) -> None:
    here = page(data=tmp_path, silence=0.2)
    with here.listening("/app/events") as events:
        chat = here.chat()
        assert next(events).data == {"id": chat, "change": "created"}
        run = here.send(chat)["run"]
        told = []
        while not told or told[-1].data.get("state") != "done":
            told.append(next(events))
        assert {(each.data["run"], each.data["chat"]) for each in told if each.kind == "run"} == {(run, chat)}


def test_what_another_process_writes_is_told(page: Make, tmp_path: Path) -> None:
    here = page(data=tmp_path, silence=0.2)
    with closing(History.open(tmp_path / "history.sqlite3")) as other:
        new, done = other.create(model="tiny").id, threading.Event()

        def rename() -> None:
            for i in range(100):
                other.change(new, title=str(i))
                if done.wait(0.3):
                    return

        renaming = threading.Thread(target=rename)
        with here.listening("/app/events") as events:
            renaming.start()
            assert next(events).data == {"id": new, "change": "changed"}
            done.set()
        renaming.join(20)


def test_a_listener_of_changes_that_does_not_read_is_bounded() -> None:
    import asyncio

    from partita_apps.serve.app.changes import MAX_WAITING, Changes

    async def run() -> bytes:
        changes = Changes()
        listening = changes.listen(0.01)
        assert await anext(listening) == b""
        for i in range(10 * MAX_WAITING):
            changes.chat(str(i % (2 * MAX_WAITING)), "changed")
        found = await anext(listening)
        changes.close()
        assert [each async for each in listening] == []
        return found

    data = asyncio.run(run())
    assert b'"change":"all"' in data
    assert data.count(b"\n\n") <= MAX_WAITING + 3
