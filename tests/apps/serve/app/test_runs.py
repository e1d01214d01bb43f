"""Replies that a page asks for: every event in order, again for whoever comes late, and kept however they end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from partita.engine.request import Failed, Request
from partita_apps.history import History

from ..scripted import Script
from ..served import until
from .page import Page, Told, text_of

Make = Callable[..., Page]
SLOW = Script("the quick brown fox jumps over the lazy dog", pause=0.05)


def kinds(events: list[Told]) -> list[str]:
    found: list[str] = []
    for each in events:
        if not found or found[-1] != each.kind:
            found.append(each.kind)
    return found


def test_a_reply_is_told_in_order_and_kept(page: Make) -> None:
    here = page(Script("the **quick** brown fox", reused=2))
    chat = here.chat()
    started = here.send(chat)
    events = here.told(started["run"])
    assert [each.id for each in events] == list(range(1, len(events) + 1))
    order = kinds(events)
    assert (order[0], order[1], order[-1]) == ("begin", "wait", "end")
    assert order.index("start") < min(order.index(kind) for kind in ("text", "block") if kind in order)
    begin, end = events[0].data, events[-1].data
    assert begin == {
        "run": started["run"],
        "chat": chat,
        "parent": started["message"],
        "reply": started["reply"],
        "model": "tiny",
    }
    assert {each.data["what"] for each in events if each.kind == "wait"} >= {"loading", "queue", "prompt"}
    start = next(each.data for each in events if each.kind == "start")
    assert (start["cached_tokens"], end["cached_tokens"]) == (2, 2)
    assert (end["state"], end["reason"], end["error"]) == ("done", "stop", None)
    tokens = [row for each in events if each.kind == "tokens" for row in each.data["tokens"] if not row.get("ends")]
    assert len(tokens) == end["tokens"] > 0
    assert end["surprise"] == pytest.approx(0.693, abs=0.01)
    assert text_of(events) == "<p>the <strong>quick</strong> brown fox</p>\n"
    kept = here.message(chat, started["reply"])
    assert (kept["state"], kept["content"], kept["html"]) == ("done", "the **quick** brown fox", text_of(events))
    assert kept["meta"]["tokens"] == kept["tokens"] == end["tokens"]
    assert kept["has_trace"]
    table = here.get(f"/app/messages/{kept['id']}/trace?from=1&count=2")
    assert (table["total"], len(table["tokens"])) == (len(tokens) + 1, 2)


def test_thoughts_are_apart(page: Make) -> None:
    here = page(Script("<think>\nwell\n</think>\n\nhello"), form="thinking")
    chat = here.chat()
    events = here.told(here.send(chat)["run"])
    assert "".join(each.data["text"] for each in events if each.kind == "thought").strip() == "well"
    kept = here.get(f"/app/chats/{chat}")["messages"][-1]
    assert (kept["thought"].strip(), kept["content"].strip()) == ("well", "hello")
    assert events[-1].data["thought_tokens"] > 0


def test_a_listener_goes_on_behind_its_last_event(page: Make) -> None:
    here = page(Script("the quick brown fox"))
    run = here.send(here.chat())["run"]
    whole = here.told(run)
    for place in (0, 1, len(whole) - 1, len(whole)):
        assert here.told(run, place) == whole[place:]
    with here.listening(f"/app/runs/{run}/events", {"last-event-id": "2"}) as events:
        assert list(events) == whole[2:]
    assert here.told(run, 10**6) == whole, "a number of another log: everything again"
    assert here.get(f"/app/chats/{here.get('/app/chats')['chats'][0]['id']}")["run"] is None


def test_listeners_hear_the_same_and_one_that_leaves_loses_nothing(page: Make) -> None:
    here = page(SLOW)
    chat = here.chat()
    run = here.send(chat)["run"]
    heard: list[list[Told]] = []
    others = [threading.Thread(target=lambda: heard.append(here.told(run))) for _ in range(3)]
    for each in others:
        each.start()
    with here.listening(f"/app/runs/{run}/events") as events:
        before = [next(events) for _ in range(3)]
    assert here.get(f"/app/chats/{chat}")["run"]["run"] == run
    rest = here.told(run, 3)
    for each in others:
        each.join(20)
    assert len(heard) == 3
    assert all(each == before + rest for each in heard)
    assert rest[-1].data["state"] == "done"


def test_nobody_listens_and_it_is_written_all_the_same(page: Make) -> None:
    here = page(SLOW)
    chat = here.chat()
    reply = here.send(chat)["reply"]
    seen: list[str] = []
    until(lambda: seen.append(here.message(chat, reply)["content"]) or here.message(chat, reply)["state"] == "done")
    assert here.message(chat, reply)["content"] == SLOW.said
    assert any(0 < len(text) < len(SLOW.said) for text in seen), "it is written as it grows"


def test_stop_keeps_the_text(page: Make) -> None:
    here = page(Script("the quick", holds=True))
    chat = here.chat()
    run = here.send(chat)["run"]
    with here.listening(f"/app/runs/{run}/events") as events:
        told: list[Told] = []
        while text_of(told) != "the quick":
            told.append(next(events))
        other = Page(here.server)
        assert other.post(f"/app/runs/{run}/stop")["state"] == "stopped"
        told += list(events)
    assert told[-1].data["state"] == "stopped"
    kept = here.message(chat, run)
    assert (kept["state"], kept["content"]) == ("stopped", "the quick")
    until(lambda: not here.server.worker.running)
    assert here.post(f"/app/runs/{run}/stop")["state"] == "stopped"


def test_one_run_a_chat(page: Make) -> None:
    here = page(Script("the quick", holds=True))
    chat = here.chat()
    run = here.send(chat)["run"]
    for body in ({"do": "send", "text": "again"}, {"do": "again", "message": run}, {"do": "continue", "message": run}):
        status, error = here.refused("POST", f"/app/chats/{chat}/runs", body)
        assert (status, error["type"]) == (409, "conflict")
    assert here.refused("POST", f"/app/chats/{chat}/delete")[0] == 409
    other = here.send(here.chat())["run"]
    assert {each["run"] for each in here.get("/app/state")["runs"]} == {run, other}
    for each in (run, other):
        here.post(f"/app/runs/{each}/stop")
    assert len(here.get(f"/app/chats/{chat}")["messages"]) == 2


@pytest.mark.parametrize(
    ("script", "state", "words"),
    [
        (Script("the quick", ends=False), "length", None),
        (Script("the", fails=Failed(0, "the model's process ended")), "failed", "process ended"),
        (Script(refuses=Failed(0, "no memory for it", "memory")), "failed", "no memory"),
    ],
)
def test_how_it_ends(page: Make, script: Script, state: str, words: str | None) -> None:
    here = page(script)
    chat = here.chat(settings={"max_tokens": 5})
    started = here.send(chat)
    end = here.told(started["run"])[-1]
    assert (end.kind, end.data["state"]) == ("end", state)
    kept = here.message(chat, started["reply"])
    assert kept["state"] == state
    assert (kept["meta"]["error"] is None) == (words is None)
    if words is not None:
        assert words in kept["meta"]["error"]["message"]


def test_a_fault_of_ours_is_an_end(page: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from partita_apps.serve import replies

    def broken(*arguments: Any) -> None:
        raise RuntimeError("at 0x7ffd1234")

    monkeypatch.setattr(replies, "prepare", broken)
    here = page()
    end = here.told(here.send(here.chat())["run"])[-1]
    assert (end.data["state"], end.data["error"]["type"]) == ("failed", "internal")
    assert "0x7ffd" not in str(end.data)


def test_again_continue_and_a_token_are_siblings(page: Make) -> None:
    here = page(Script("the quick brown fox"))
    chat = here.chat()
    first = here.reply(chat)
    question = first["parent"]
    second = here.post(f"/app/chats/{chat}/runs", {"do": "again", "message": question})
    here.told(second["run"])
    longer = here.post(f"/app/chats/{chat}/runs", {"do": "continue", "message": first["id"]})
    here.told(longer["run"])
    other = here.server.worker.ids(" dog")[0]
    body = {"do": "token", "message": first["id"], "position": 2, "token": other}
    branched = here.post(f"/app/chats/{chat}/runs", body)
    told = here.told(branched["run"])
    found = here.get(f"/app/chats/{chat}")
    replies = [each for each in found["messages"] if each["role"] == "assistant"]
    assert {each["parent"] for each in replies} == {question}
    assert replies[0]["siblings"] == [each["id"] for each in replies]
    assert len(replies) == 4
    assert found["chat"]["leaf"] == branched["reply"]
    assert replies[2]["content"] == "the quick brown fox" * 2
    assert replies[2]["tokens"] == 2 * first["tokens"]
    asked = here.server.worker.requests
    ids = here.server.worker.ids("the quick brown fox")
    assert asked[2].prompt == [*asked[0].prompt, *ids]
    assert asked[3].prompt == [*asked[0].prompt, *ids[:2], other]
    rows = [row for each in told if each.kind == "tokens" for row in each.data["tokens"]]
    assert [row["id"] for row in rows[:3]] == [*ids[:2], other]
    assert [bool(row.get("given")) for row in rows[:4]] == [True, True, True, False]


def test_a_reply_without_known_tokens_is_continued_by_its_text(page: Make) -> None:
    here = page(Script(" and more"))
    message = {"id": "a", "role": "user", "content": "hi"}
    answer = {"id": "b", "parent": "a", "role": "assistant", "content": "the fox", "model": "elsewhere"}
    document = {"partita_history": 1, "chats": [{"title": "old", "messages": [message, answer]}]}
    chat = here.post("/app/import", {"document": document})["chats"][0]["id"]
    reply = here.get(f"/app/chats/{chat}")["messages"][1]["id"]
    started = here.post(f"/app/chats/{chat}/runs", {"do": "continue", "message": reply})
    here.told(started["run"])
    assert here.message(chat, started["reply"])["content"] == "the fox and more"
    body = {"do": "token", "message": reply, "position": 0, "token": 3}
    assert here.refused("POST", f"/app/chats/{chat}/runs", body)[0] == 400


def test_what_the_model_is_given(page: Make) -> None:
    here = page()
    settings = {"system": "Be brief.", "temperature": 0, "max_tokens": 7, "stop": ["dog"], "endless": False}
    chat = here.chat(settings=settings)
    files = [{"name": 'a "b".txt', "type": "text/plain", "text": "inside"}]
    here.reply(chat, "what is it?", attachments=files)
    (request,) = here.server.worker.requests
    prompt = here.server.worker.text.tokenizer.decode(request.prompt)
    assert "Be brief." in prompt
    assert "<file name=\"a 'b'.txt\">\ninside\n</file>\n\nwhat is it?" in prompt
    assert (request.max_tokens, request.sampling.temperature, request.endless) == (7, 0, False)
    kept = here.get(f"/app/chats/{chat}")["messages"][0]["attachments"]
    assert kept[0]["characters"] == 6
    assert "text" not in kept[0]
    here.reply(chat, "again", attachments=kept, parent=None)
    assert "inside" in here.server.worker.text.tokenizer.decode(here.server.worker.requests[-1].prompt)


def test_a_chat_outgrows_the_context_unless_it_is_told_not_to(page: Make) -> None:
    here = page(Script("fox"), text={"context": 24})
    chat = here.chat()
    text = "the quick brown fox " * 10
    end = here.told(here.send(chat, text)["run"])[-1].data
    assert (end["state"], end["context"]) == ("done", 24)
    assert end["forgotten"] == end["prompt_tokens"] + end["tokens"] - 24 > 0
    here.post(f"/app/chats/{chat}", {"settings": {"endless": False}})
    end = here.told(here.send(chat, text, parent=None)["run"])[-1].data
    assert (end["state"], end["error"]["type"]) == ("failed", "context")


def test_a_run_that_is_forgotten_is_told_from_the_history(page: Make, tmp_path: Path) -> None:
    here = page(Script("the **quick** fox"), data=tmp_path)
    chat = here.chat()
    run = here.send(chat)["run"]
    live = here.told(run)
    with closing(History.open(tmp_path / "history.sqlite3")) as other:
        copy = other.branch(run)
    events = here.told(copy.leaf or "")
    assert kinds(events)[0] == "begin"
    assert text_of(events) == text_of(live)
    assert events[-1].data["state"] == "done"
    assert events[-1].data["tokens"] == live[-1].data["tokens"]


def test_a_reply_that_another_process_writes_is_followed(page: Make, tmp_path: Path) -> None:
    here = page(data=tmp_path)
    with closing(History.open(tmp_path / "history.sqlite3")) as other:
        chat = other.create(model="tiny")
        question = other.add(chat.id, parent=None, role="user", content="hi")
        reply = other.add(chat.id, parent=question.id, role="assistant", state="running")
        with here.listening(f"/app/runs/{reply.id}/events") as events:
            told = [next(events)]
            other.write(reply.id, content="the *quick*")
            told.append(next(events))
            other.write(reply.id, content="the *quick* fox", state="done")
            told += list(events)
        assert here.refused("POST", f"/app/chats/{chat.id}/runs", {"do": "continue", "message": question.id})[0] == 400
    assert text_of(told) == "<p>the <em>quick</em> fox</p>\n"
    assert (told[-1].kind, told[-1].data["state"]) == ("end", "done")


def test_a_listener_that_does_not_read_holds_nobody_up(page: Make) -> None:
    said = ("the quick brown fox jumps " * 40).strip()

    def play(request: Request) -> Script:
        return Script(said)

    here = page(play, text={"context": 4096})
    chat = here.chat(settings={"max_tokens": 3000})
    sleeping = here.server.connect()
    run = here.send(chat)["run"]
    sleeping.request("GET", f"/app/runs/{run}/events", headers=here.headers)
    then = time.monotonic()
    assert here.told(run)[-1].data["state"] == "done"
    assert time.monotonic() - then < 60
    sleeping.close()
