"""`partita chat --server`: conversations with a model that a server of ours has loaded."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from partita.engine.request import Failed
from partita.errors import DataError, SourceError
from partita_apps.chat.commands import Send, read
from partita_apps.conversation.conversation import NONE, About

from .conversing import Serve, conversation, reply
from .scripted import Script
from .served import until


def test_two_turns_and_what_is_known_of_them(served: Serve) -> None:
    server = served([Script("the quick brown fox", reused=0), Script("jumps", reused=9)])
    talk = conversation(server.url, system="be brief")
    assert talk.about == About(
        "tiny", NONE, server.url, "numpy", "cpu", "float32", 512, None, "dense", bytes_per_token=1 / 512
    )
    first = reply(talk, "the fox")
    assert first.text == "the quick brown fox"
    assert first.finish_reason == "stop"
    assert first.count == len(server.worker.ids("the quick brown fox"))
    second = reply(talk, "and then")
    prompt, count = talk.state.prompt_tokens, len(server.worker.ids("jumps"))
    assert prompt is not None
    assert (talk.state.reused, talk.state.seen, talk.state.held) == (9, prompt + count, prompt + count)
    assert second.read_tokens == prompt - 9
    assert [message["content"] for message in talk.messages] == [
        *("the fox", "the quick brown fox", "and then", "jumps")
    ]
    text = server.worker.text.tokenizer.decode(server.worker.requests[-1].prompt, specials=True)
    assert all(said in text for said in ("be brief", "the fox", "the quick brown fox", "and then"))
    assert re.search(rf"{count} tokens? · .*first .* · context {prompt + count}/512", second.line())
    assert f"prompt {prompt - 9} tokens" in second.details()
    assert "9 reused" in second.details()


def test_only_what_a_person_chose_is_sent(served: Serve) -> None:
    server = served(Script("the fox"))
    talk = conversation(server.url)
    usual = server.worker.text.usual
    reply(talk, "a")
    assert server.worker.requests[-1].sampling.temperature == usual.temperature
    assert "temperature" in talk.delegated
    talk.set("temperature", "0")
    talk.set("stop", "fox")
    assert reply(talk, "b").text == "the "
    assert server.worker.requests[-1].sampling.temperature == 0
    assert server.worker.requests[-1].max_tokens == 8
    shown = str(read(talk, "/show"))
    assert re.search(r"temperature +0\.0\n", shown)
    assert re.search(r"top_k +the server's\n", shown)
    assert re.search(rf"server +{server.url}\n", shown)
    sent = read(talk, "/retry")
    assert isinstance(sent, Send)
    assert "temperature is 0" in sent.note


def test_undo_clear_retry_and_files(served: Serve, tmp_path: Path) -> None:
    server = served(Script("the fox"))
    talk = conversation(server.url)
    for text in ("one", "two"):
        reply(talk, text)
    read(talk, f"/save {tmp_path / 'talk.json'}")
    with talk.replacing():
        reply(talk, "three")
    assert [message["content"] for message in talk.messages[::2]] == ["one", "three"]
    assert "2 messages left" in str(read(talk, "/undo"))
    assert talk.messages[0]["content"] == "one"
    read(talk, "/clear")
    assert talk.messages == []
    read(talk, f"/load {tmp_path / 'talk.json'}")
    assert len(talk.messages) == 4
    assert talk.delegated == frozenset()  # a file's settings are a person's
    with pytest.raises(DataError, match="empty"):
        reply(talk, "  ")


def test_thoughts_and_calls(served: Serve) -> None:
    call = '<tool_call>\n{"name": "look", "arguments": {"at": "fox"}}\n</tool_call>'
    server = served(Script(f"<think>\nquick\n</think>\n\nfox\n{call}"), "thinking")
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    talk = conversation(server.url, max_tokens=128, template_var={"tools": tools})
    found = reply(talk, "the fox")
    assert (found.thought.strip(), found.text.strip()) == ("quick", "fox")
    assert 0 < found.thought_count < found.count
    assert [(call.name, json.loads(call.arguments)) for call in found.calls] == [("look", {"at": "fox"})]
    assert "thoughts" in found.line()
    reply(talk, "and?")
    prompt = server.worker.text.tokenizer.decode(server.worker.requests[-1].prompt, specials=True)
    assert '"at": "fox"' in prompt.partition("the fox")[2]  # as the model said it


def test_probabilities(served: Serve) -> None:
    server = served(Script("the quick"))
    found = reply(conversation(server.url), "the", alternatives=3)
    assert [row["text"] for row in found.trace] == ["the", "·qu", "ick"]
    assert found.trace[0]["probability"] == pytest.approx(0.5)
    assert [len(row["alternatives"]) for row in found.trace] == [3, 3, 3]
    assert found.document(None, True)["tokens"] is None  # their ids are not said


def test_adapters_are_the_servers(served: Serve) -> None:
    server = served(Script("fox"))
    talk = conversation(server.url)
    assert talk.adapters == [NONE]
    with pytest.raises(DataError, match="no adapters"):
        talk.use_adapter("loud")
    server.registry.adapters = ("loud", "quiet")
    talk = conversation(server.url, "tiny:loud")
    assert (talk.about.model, talk.about.adapter) == ("tiny", "loud")
    assert "there are also quiet, none" in str(read(talk, "/adapter"))
    reply(talk, "a")
    read(talk, "/adapter quiet")
    reply(talk, "b")
    read(talk, "/adapter none")
    reply(talk, "c")
    assert server.registry.used[-3:] == ["tiny:loud", "tiny:quiet", "tiny"]
    with pytest.raises(DataError, match="'soft'; expected one of loud, quiet, none"):
        talk.use_adapter("soft")


def test_a_closed_reply_is_cancelled_and_kept(served: Serve) -> None:
    server = served(Script("the quick", holds=True))
    talk = conversation(server.url)
    pieces = talk.reply("the fox")
    said = ""
    while "the quick" not in said:
        said += next(pieces).text
    assert next(pieces).text == ""  # nothing comes, and whoever reads has a turn
    pieces.close()
    assert talk.messages[-1]["content"] == "the quick"
    until(lambda: server.worker.cancelled)


def test_a_prompt_that_is_being_read_can_be_stopped(served: Serve) -> None:
    server = served(Script("", holds=True))
    talk = conversation(server.url)

    def stop(done: int, total: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        next(talk.reply("the fox", on_progress=stop))
    assert talk.messages == []


def test_what_the_server_refuses_is_its_message(served: Serve) -> None:
    busy = Failed(0, "12 requests are waiting already", "busy")
    with pytest.raises(SourceError, match="answers 429: 12 requests are waiting already"):
        reply(conversation(served(Script(refuses=busy)).url), "hi")
    server = served(Script("the fox", fails=Failed(0, "the model broke", "internal")))
    talk = conversation(server.url)
    with pytest.raises(SourceError, match="the model broke"):
        reply(talk, "hi")
    assert talk.messages[-1]["content"] == "the fox"  # what was said is kept


def test_a_key(served: Serve) -> None:
    server = served(Script("fox"), api_key="secret")
    with pytest.raises(SourceError, match="put its key into PARTITA_API_KEY"):
        conversation(server.url)
    with pytest.raises(SourceError, match="PARTITA_API_KEY is not its key") as caught:
        conversation(server.url, key="wrongkey")
    assert "wrongkey" not in str(caught.value)
    assert reply(conversation(server.url, key="secret"), "hi").text == "fox"
    with pytest.raises(DataError, match="printable"):
        conversation(server.url, key="two\r\nlines")
