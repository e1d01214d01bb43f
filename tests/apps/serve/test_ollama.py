"""Ollama's read-only routes, as VS Code's and Codex' clients use them."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from .served import Served

Serve = Callable[..., Served]


def test_version_is_a_number(served: Serve) -> None:
    version = served().get("/api/version").json["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert tuple(map(int, version.split("."))) >= (0, 13, 4)


def test_tags(served: Serve) -> None:
    server = served()
    server.registry.adapters = ["short"]
    base, adapter = server.get("/api/tags").json["models"]
    assert base["name"] == base["model"] == "tiny"
    assert (adapter["name"], adapter["details"]["parent_model"]) == ("tiny:short", "tiny")
    assert base["digest"] != adapter["digest"]
    assert base["size"] == 1000
    assert base["modified_at"].startswith("2023-11-14T")


@pytest.mark.parametrize("key", ["model", "name"])
@pytest.mark.parametrize(("form", "thinks"), [("thinking", True), ("harmony", True), ("glimmer", True), (None, False)])
def test_show(served: Serve, key: str, form: str | None, thinks: bool) -> None:
    shown = served(form=form, text={"context": 4096}).ask("POST", "/api/show", {key: "tiny"}).json
    assert shown["capabilities"] == ["completion", "tools", *["thinking"] * thinks]
    info = shown["model_info"]
    assert info[f"{info['general.architecture']}.context_length"] == 4096
    assert shown["template"]
    assert shown["details"]["family"]


def test_what_is_not_there_is_said_in_ollamas_form(served: Serve) -> None:
    server = served()
    missing = server.post("/api/show", {"model": "other"})
    assert missing.status == 404
    assert "other" in missing.json["error"]
    assert server.post("/api/show", {}).json == {"error": "`model` is missing"}
    assert server.registry.used == []
