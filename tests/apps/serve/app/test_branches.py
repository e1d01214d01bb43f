"""A reply that goes on from a token of another one: what stands in front of it is that other reply, byte for byte."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from partita_apps.history import History, Message
from partita_apps.serve.app.rendering import Rendering
from partita_apps.serve.app.run import Run, Task, Tools
from partita_apps.serve.asked import Ask
from partita_apps.serve.metrics import Metrics

from ..scripted import Script, ScriptedRegistry
from ..test_replies import CALL, TOOLS

Make = Callable[..., ScriptedRegistry]
REPLIES = {
    "plain": ("the quick brown fox jumps", None),
    "thoughts": ("<think>\nhm, a fox\n</think>\n\nthe fox", "thinking"),
    "calls": (f"Looking.\n{CALL}", "thinking"),
    "cut characters": ("a🎼b 東京 ü", None),
}


def replied(made: ScriptedRegistry, history: History, chat: str, **task: Any) -> Message:
    """The reply to the chat's only question, at its end."""
    question = history.messages(chat)[0]
    reply = history.add(chat, parent=question.id, role="assistant", state="running")
    begins = task.pop("begins", ())
    tools = TOOLS if not begins else ()
    messages = [{"role": "user", "content": question.content}]
    ask = Ask("tiny", messages=messages, tools=tools, trace=8, begins=begins, endless=True)

    async def go() -> None:
        works = Tools(made, Metrics(dict), history, Rendering())
        run = Run(Task(reply.id, chat, question.id, ask, **task), works, lambda run: None)
        await run.done

    asyncio.run(go())
    return history.message(reply.id)


@pytest.mark.parametrize("name", REPLIES)
def test_a_branch_begins_with_the_tokens_of_the_other_reply(registry: Make, tmp_path: Path, name: str) -> None:
    said, form = REPLIES[name]
    made = registry(Script(said), form=form)
    worker, tokenizer = made.models["tiny"].worker, made.models["tiny"].text.tokenizer
    with closing(History.open(tmp_path / "history.sqlite3")) as history:
        chat = history.create(model="tiny").id
        history.add(chat, parent=None, role="user", content="What now?")
        old = replied(made, history, chat)
        trace = history.trace(old.id)[0]
        assert [row["id"] for row in trace["tokens"] if not row.get("ends")] == list(old.ids)
        bytes_of = b"".join(map(tokenizer.token_bytes, old.ids))
        assert joined(trace["tokens"]) == bytes_of + b"<|im_end|>"
        for position in range(len(old.ids)):
            other = trace["tokens"][position]["top"][1][0]
            worker.play = Script([other])
            begins = (*old.ids[:position], other)
            new = replied(made, history, chat, begins=begins, origin=trace)
            assert new.state == "done"
            assert tuple(worker.requests[-1].prompt[-len(begins) :]) == begins
            assert new.ids == (*begins, other)
            rows = history.trace(new.id)[0]["tokens"]
            assert rows[:position] == [{**row, "given": True} for row in trace["tokens"][:position]]
            assert joined(rows[:position]) == b"".join(map(tokenizer.token_bytes, old.ids[:position]))
            assert rows[position]["chosen"]
            assert rows[position]["p"] == trace["tokens"][position]["top"][1][2]
            assert not any(row.get("given") for row in rows[position + 1 :])


def test_the_end_may_be_chosen_as_the_next_token(registry: Make, tmp_path: Path) -> None:
    made = registry(Script("the quick brown fox"))
    with closing(History.open(tmp_path / "history.sqlite3")) as history:
        chat = history.create(model="tiny").id
        history.add(chat, parent=None, role="user", content="What now?")
        old = replied(made, history, chat)
        trace = history.trace(old.id)[0]
        end = trace["tokens"][-1]["id"]
        asked = len(made.models["tiny"].worker.requests)
        new = replied(made, history, chat, begins=(*old.ids[:2], end), origin=trace)
        assert len(made.models["tiny"].worker.requests) == asked  # there is nothing to compute
        assert (new.state, new.ids) == ("done", old.ids[:2])
        rows = history.trace(new.id)[0]["tokens"]
        assert [row["id"] for row in rows] == [*old.ids[:2], end]
        assert rows[-1]["ends"]


def joined(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(bytes.fromhex(row["bytes"]) if "bytes" in row else row["text"].encode() for row in rows)
