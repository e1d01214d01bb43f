"""Fine-tuning as the page asks for it, and what a server's death does to a run."""

from __future__ import annotations

import base64
import json
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from partita_apps.serve.app import token
from partita_apps.serve.frames import Load
from partita_apps.serve.names import Names, entry
from partita_apps.serve.registry import Registry

from ..served import serving, until
from ..started import Start
from .page import HEADER, Page
from .tuned import QUICK, chats


@pytest.fixture
def here(tiny_model: Path, tmp_path: Path) -> Iterator[Page]:
    load = Load("", backend="torch", dtype="float32", context=128)
    with serving(Registry(Names([entry(str(tiny_model))], None), load), data=tmp_path / "data") as server:
        yield Page(server)


def upload(here: Page, content: bytes | None = None, name: str = "letters.jsonl") -> Any:
    data = base64.b64encode(chats() if content is None else content).decode()
    return here.post("/app/tuning/data", {"name": name, "data": data})


def test_a_run_over_http(here: Page) -> None:
    empty = here.get("/app/tuning")
    assert (empty["runs"], empty["data"], empty["active"]) == ([], [], None)
    assert empty["defaults"]["rank"] == 16
    data = upload(here)
    assert data["examples"][0]["turns"][0] == ["user", "the fox number 0"]
    asked = {"model": "tiny", "data": data["id"], "settings": {**QUICK, "steps": 5}}
    found = here.post("/app/tuning/predict", asked)
    assert found["prediction"]["steps"] == 5
    assert found["prediction"]["needs"] < found["prediction"]["free"]
    with here.listening("/app/events") as changes:
        run = here.post("/app/tuning/runs", {**asked, "name": "fox"})
        path = f"/app/tuning/runs/{run['id']}"
        with here.listening(f"{path}/events?after={run['last']}") as events:
            told = list(events)
        assert next(each for each in changes if each.kind == "tuning").data == {"id": run["id"]}
    assert [each.id for each in told] == list(range(run["last"] + 1, told[-1].id + 1))
    assert (told[-1].kind, told[-1].data["state"]) == ("end", "done")
    until(lambda: here.get("/app/tuning")["active"] is None)
    found = here.get(path)
    assert [step for step, _ in found["train"]] == [1, 2, 3, 4, 5]
    assert [step for step, _ in found["valid"]] == [0, 1, 2, 3, 4, 5]
    assert (found["running"], found["state"], found["adapter"]) == (False, "done", True)
    assert all(each["after"] is not None for each in found["samples"])
    with here.listening(f"{path}/events") as events:
        assert [(each.kind, each.data["state"]) for each in events] == [("end", "done")]
    assert here.post(f"{path}/use") == {"model": "tiny:fox"}
    assert [each["id"] for each in here.get("/app/state")["models"]] == ["tiny", "tiny:fox"]
    assert here.reply(here.chat(model="tiny:fox", settings={"max_tokens": 4}))["model"] == "tiny:fox"
    assert here.refused("POST", f"{path}/resume")[0] == 409
    here.post(f"{path}/delete")
    here.post(f"/app/tuning/data/{data['id']}/delete")
    assert here.get("/app/tuning") == empty
    assert here.refused("GET", path)[0] == 404


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("data", {"name": "a.jsonl", "data": "no base64!"}, 400, "data"),
        ("data", {"name": "", "data": ""}, 400, "name"),
        ("data", {"name": "../../evil.jsonl", "data": base64.b64encode(b"{").decode()}, 400, None),
        ("data", {"name": "a.sh", "data": ""}, 400, "name"),
        ("data", {"data": ""}, 400, "name"),
        ("data/..%2f..%2fetc/delete", {}, 404, None),
        ("runs/..%2frecord/use", {}, 404, None),
        ("runs/%00/delete", {}, 404, None),
        ("runs", {"model": "tiny", "data": "../../etc/passwd"}, 404, "data"),
        ("runs", {"model": "/etc", "data": "0" * 16}, 404, "model"),
        ("runs", {"model": "tiny", "data": "x", "settings": {"rank": 0}}, 400, "settings.rank"),
        ("runs", {"model": "tiny", "data": "x", "settings": {"rank": 1.5}}, 400, "settings.rank"),
        ("runs", {"model": "tiny", "data": "x", "settings": {"learning_rate": -1}}, 400, "settings.learning_rate"),
        ("runs", {"model": "tiny", "data": "x", "settings": {"sample": ["x"] * 9}}, 400, "settings.sample"),
        ("predict", {"model": "tiny"}, 400, "data"),
    ],
)
def test_what_is_refused(here: Page, path: str, body: Any, status: int, field: str | None, tmp_path: Path) -> None:
    found, error = here.refused("POST", f"/app/tuning/{path}", body)
    assert (found, error["field"]) == (status, field), error
    assert str(tmp_path) not in error["message"]
    assert not list(tmp_path.rglob("*evil*"))


def test_no_setting_beyond_those_of_the_page_reaches_a_run(here: Page) -> None:
    """A path among them would be one that a request has chosen."""
    asked = {"model": "tiny", "data": upload(here)["id"], "settings": {"data": "/etc/passwd", "out": "/", "steps": 1}}
    answer = here.server.post("/app/tuning/runs", asked, here.headers)
    assert answer.status == 200
    assert answer.json["settings"] == {"steps": 1}


def test_a_server_without_a_data_folder_fine_tunes_nothing(tiny_model: Path) -> None:
    with serving(Registry(Names([entry(str(tiny_model))], None), Load(""))) as server:
        status, error = Page(server).refused("GET", "/app/tuning")
        assert (status, error["type"]) == (409, "conflict")


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_run_outlives_no_server_and_goes_on_with_the_next(
    number: int, start: Start, tiny_model: Path, environment: dict[str, str]
) -> None:
    """Killed, the server takes the run's process with it; asked to end, it lets the run save first."""
    arguments = (tiny_model, "--only", "--backend=torch")
    server = start(*arguments)
    ask = asking(server, environment)
    body = {"name": "letters.jsonl", "data": base64.b64encode(chats()).decode()}
    data = ask("POST", "/app/tuning/data", body)["id"]
    settings = {**QUICK, "steps": 3000}
    run = ask("POST", "/app/tuning/runs", {"model": "tiny", "data": data, "settings": settings})["id"]
    until(lambda: ask("GET", f"/app/tuning/runs/{run}")["step"] >= 60, 120)
    children = [each.pid for each in psutil.Process(server.process.pid).children()]
    assert children
    status = server.end(number)
    until(lambda: not any(map(alive, children)), 30)
    ask = asking(start(*arguments), environment)
    found = ask("GET", f"/app/tuning/runs/{run}")
    saved = 50 if number == signal.SIGKILL else 60  # the last checkpoint, or the last step
    assert (status, found["state"]) == ((-9, "interrupted") if number == signal.SIGKILL else (0, "stopped"))
    assert found["step"] >= saved
    ask("POST", f"/app/tuning/runs/{run}/resume", {})
    until(lambda: (ask("GET", f"/app/tuning/runs/{run}")["ready"] or {}).get("step", 0) >= saved, 120)


def asking(server: Any, environment: dict[str, str]) -> Callable[..., Any]:
    own = token.read(Path(environment["PARTITA_DATA"]))
    assert own is not None

    def ask(method: str, path: str, body: Any = None) -> Any:
        status, text = server.ask(method, path, body, **{HEADER: own})
        assert status == 200, text
        return json.loads(text)

    return ask


def alive(pid: int) -> bool:
    with suppress(psutil.Error):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False
