"""`partita chat --session`: conversations that go on in another run. `--draft` and `--lookup`: the same text sooner."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import partita
from partita.draft_model import ModelDraft
from partita.errors import CheckpointError, DataError
from partita.inference.speculative import PromptLookup
from partita_apps.chat.show import last_turn
from partita_apps.conversation import saved, session_file
from partita_apps.conversation.local import CacheOptions, LocalConversation
from partita_apps.conversation.settings import Settings

from . import command

PARTITA = str(Path(sys.executable).with_name("partita"))
PROMPT = "the fox and the dog and the fox and the dog"


@pytest.fixture
def run(tiny_model, tmp_path):
    """run(*options, model=) is a finished `partita chat` in tmp_path."""

    def chat(*options: object, model: Path = tiny_model) -> subprocess.CompletedProcess[str]:
        return command.run("chat", model, "--backend", "numpy", "--dtype", "float32", *options, folder=tmp_path)

    return chat


@pytest.fixture
def ask(run):
    """ask(*options) is the JSON document of one reply."""

    def answer(*options: object) -> dict:
        result = run("--json", *options)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    return answer


def talk_with(model, draft=None, **settings) -> LocalConversation:
    return LocalConversation(model, Settings.of({"max_tokens": 8, **settings}), CacheOptions(), draft=draft)


def altered(folder: Path, to: Path, **values: object) -> Path:
    """A copy of a model with other values in its config."""
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**config, **values}))
    return to


# Drafts


def test_a_text_is_the_same_with_lookup_and_the_acceptance_is_reported(ask):
    plain = ask("-p", PROMPT, "-n", 40)
    found = ask("-p", PROMPT, "-n", 40, "--lookup")
    assert (found["tokens"], found["text"]) == (plain["tokens"], plain["text"])
    draft = found["draft"]
    assert set(draft) == {"proposed", "accepted", "steps", "acceptance_rate"}
    assert 0 < draft["accepted"] <= draft["proposed"]
    assert draft["steps"] == 40 - draft["accepted"]
    assert draft["acceptance_rate"] == draft["accepted"] / draft["proposed"]


def test_a_model_that_drafts_for_itself_is_believed(ask, tiny_model):
    plain = ask("-p", PROMPT, "-n", 24)
    found = ask("-p", PROMPT, "-n", 24, "--draft", tiny_model)
    assert found["tokens"] == plain["tokens"]
    assert found["draft"]["accepted"] == found["draft"]["proposed"] > 0
    assert found["draft"]["steps"] < 10


def test_chance_and_trace_are_the_same_with_drafts(ask):
    options = ["-p", PROMPT, "-n", 30, "--temperature", 0.5, "--seed", 3, "--trace"]
    plain, found = ask(*options), ask(*options, "--lookup")
    assert found["tokens"] == plain["tokens"]
    for a, b in zip(found["trace"], plain["trace"], strict=True):
        assert (a["id"], a["text"]) == (b["id"], b["text"])
        assert a["probability"] == pytest.approx(b["probability"], rel=1e-3)


def test_a_draft_of_another_vocabulary_is_one_line(run, default_model):
    result = run("-p", "x", "--draft", default_model)
    assert (result.returncode, result.stdout) == (2, "")
    assert "a draft needs the same tokenizer" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "drafter", [lambda model: PromptLookup(), lambda model: ModelDraft(model, model)], ids=["lookup", "model"]
)
def test_turns_and_replies_that_are_stopped_are_the_same_with_drafts(tiny_model, drafter):
    """Each with a model of its own: of one that both have, the second would begin where the first had read to."""
    alone, believed = (partita.load(tiny_model, backend="numpy") for _ in range(2))
    plain, drafted = talk_with(alone), talk_with(believed, drafter(believed))
    for conversation in (plain, drafted):
        list(conversation.reply(PROMPT))
        reply = conversation.reply("and the dog and the fox")
        for _ in range(3):
            next(reply)
        reply.close()
        list(conversation.reply("the end"))
    assert drafted.messages == plain.messages
    assert drafted.session.tokens == plain.session.tokens
    assert drafted.session.reused - plain.session.reused in (0, 1)  # an accepted draft has been read when it is said


# Conversations that are kept


def test_a_second_command_goes_on_and_reads_only_what_is_new(ask, tiny):
    conversation = talk_with(tiny)
    first = ask("--session", "talk.st", "-n", 8, "-p", "the fox")
    list(conversation.reply("the fox"))
    held = len(conversation.session.tokens)
    second = ask("--session", "talk.st", "-n", 8, "-p", "and the dog", "--lookup")
    list(conversation.reply("and the dog"))
    assert [first["text"], second["text"]] == [message["content"] for message in conversation.messages[1::2]]
    assert (first["reused_tokens"], second["reused_tokens"]) == (0, held)
    assert second["prompt_tokens"] == conversation.prompt_tokens


def test_a_conversation_keeps_its_system_prompt_but_takes_another_one(ask):
    first = ask("--session", "talk.st", "-n", 4, "-p", "the fox", "--system", "the lazy dog", "--sinks", "system")
    second = ask("--session", "talk.st", "-n", 4, "-p", "and", "--sinks", "system")
    assert second["sinks"] == first["sinks"]
    assert second["reused_tokens"] == first["prompt_tokens"] + 3
    third = ask("--session", "talk.st", "-n", 4, "-p", "and", "--system", "a quick fox", "--sinks", first["sinks"])
    assert 0 < third["reused_tokens"] < first["sinks"]
    assert third["prompt_tokens"] > second["prompt_tokens"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--kv", "k8v8"], "saved with --kv 32, now --kv k8v8 is asked"),
        (["--sinks", "7"], "saved with --sinks 4, now --sinks 7 is asked"),
        (["--context", "64"], "saved with --context 512, now --context 64 is asked"),
    ],
)
def test_a_file_of_another_cache_is_one_line_and_left_alone(run, tmp_path, options, words):
    run("--session", "talk.st", "-n", 2, "-p", "the fox")
    before = (tmp_path / "talk.st").read_bytes()
    result = run("--session", "talk.st", "-n", 2, "-p", "the fox", *options)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert words in result.stderr
    assert (tmp_path / "talk.st").read_bytes() == before


def test_a_file_of_another_model_is_one_line_and_left_alone(run, tmp_path, tiny_model):
    run("--session", "talk.st", "-n", 2, "-p", "the fox")
    before = (tmp_path / "talk.st").read_bytes()
    other = altered(tiny_model, tmp_path / "other", rope_theta=5000.0)
    result = run("--session", "talk.st", "-n", 2, "-p", "the fox", model=other)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "the session was saved with" in result.stderr
    assert (tmp_path / "talk.st").read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["other", "talk.st"]


def test_a_file_that_is_not_a_conversation_is_one_line(run, tmp_path, tiny, tiny_model):
    (tmp_path / "text").write_text("hello, hello, hello")
    tiny.session().save(tmp_path / "bare.st")
    weights = next(tiny_model.glob("*.safetensors"))
    for file, words in [("text", "damaged"), ("bare.st", "without a conversation"), (weights, "not a saved session")]:
        result = run("--session", file, "-p", "x")
        assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
        assert words in result.stderr


@pytest.mark.parametrize(
    "change",
    [
        {"messages": 3},
        {"messages": [{"role": "user"}] * 2},
        {"replies": []},
        {"replies": [[-1]]},
        {"replies": ["abc"]},
        {"system": 3},
    ],
)
def test_a_damaged_conversation_is_refused_before_a_model_is_loaded(tiny, tmp_path, change):
    path, session = tmp_path / "talk.st", tiny.session()
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    good = {"messages": messages, "replies": [[1]], "system": None}
    session.save(path, {"conversation": good})
    assert session_file.find(path) == session_file.StoredConversation(messages, [[1]], None)
    session.save(path, {"conversation": {**good, **change}})
    with pytest.raises(CheckpointError, match=r"talk\.st: its conversation is damaged"):
        session_file.find(path)


def test_a_file_is_written_when_something_was_said_and_only_then(tiny, tmp_path):
    path, conversation = tmp_path / "talk.st", talk_with(tiny)
    saved_file = session_file.SessionFile(conversation, path)
    saved_file.save()
    assert not path.exists()
    list(conversation.reply("the fox"))
    saved_file.save()
    written = path.stat().st_ino
    saved_file.save()
    assert path.stat().st_ino == written
    conversation.clear()
    saved_file.save()
    assert path.stat().st_ino == written  # nothing was said since: what the file holds stays
    list(conversation.reply("the dog"))
    saved_file.save()
    assert [message["content"] for message in session_file.find(path).messages][:1] == ["the dog"]
    session_file.SessionFile(conversation, None).save()


def test_answers_after_another_system_prompt_come_back_as_they_stand(tiny, tmp_path):
    path, conversation = tmp_path / "talk.st", talk_with(tiny)
    list(conversation.reply("the fox"))
    conversation.change(conversation.settings.set("system", "the lazy dog"))
    list(conversation.reply("and"))
    assert conversation.replies[0] is None
    assert conversation.replies[1]
    session_file.SessionFile(conversation, path).save()
    again = talk_with(tiny, system="the lazy dog")
    found = session_file.find(path)
    assert found is not None
    session_file.SessionFile(again, path).resume(found)
    held = list(conversation.session.tokens)
    assert again.session.tokens == held
    list(again.reply("the end"))
    list(conversation.reply("the end"))
    assert again.session.reused == len(held)
    assert again.messages == conversation.messages


def test_the_last_turn_is_shown_in_brief(tiny):
    conversation = talk_with(tiny)
    conversation.take(
        [{"role": "user", "content": "a" * 999}, {"role": "assistant", "content": "b" * 999 + "\x1b\u202e"}], Settings()
    )
    lines = last_turn(conversation).split("\n")
    assert [len(line) for line in lines] == [243, 601]
    assert lines[0].endswith("…")
    assert lines[1].endswith(r"b\x1b\u202e")


def test_raw_text_has_no_conversation_to_resume(tiny):
    with pytest.raises(DataError, match="`raw`"):
        LocalConversation(tiny, Settings(), CacheOptions(), raw=True).resume([], [], None)


@pytest.mark.parametrize("once", [True, False])
def test_one_reply_alone_copies_no_cache_for_others(tiny_model, once):
    model = partita.load(tiny_model, backend="numpy")
    conversation = LocalConversation(model, Settings.of({"max_tokens": 2}), CacheOptions(), once=once)
    list(conversation.reply("the fox " * 40))
    assert (len(model.prefixes) == 0) is once


# One writer, links, leftovers


def test_a_file_that_another_chat_has_is_refused_and_left_alone(run, tmp_path):
    run("--session", "talk.st", "-n", 2, "-p", "the fox")
    before = (tmp_path / "talk.st").read_bytes()
    (tmp_path / "link").symlink_to("talk.st")
    with saved.held(tmp_path / "talk.st"):
        for file in ("talk.st", "link"):
            result = run("--session", file, "-n", 2, "-p", "the fox")
            assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
            assert "in use by a running chat" in result.stderr
        with pytest.raises(DataError, match="in use"):
            saved.save(saved.Saved("m", Settings(), []), tmp_path / "talk.st")
    assert (tmp_path / "talk.st").read_bytes() == before
    assert run("--session", "talk.st", "-n", 2, "-p", "the fox").returncode == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["link", "talk.st"]


def test_a_killed_chat_holds_nothing_and_what_it_left_goes(run, tmp_path):
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from partita.files.atomic import whole_file\n"
        "from partita_apps.conversation.saved import held\n"
        "with held(Path('talk.st')), whole_file(Path('talk.st'), private=True):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=False)
    (tmp_path / ".other.partial-12345678").touch()
    assert len(list(tmp_path.iterdir())) == 3  # a lock, half a file, and what is not ours
    assert run("--session", "talk.st", "-n", 2, "-p", "the fox").returncode == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == [".other.partial-12345678", "talk.st"]


def test_a_link_stays_and_what_it_leads_to_is_written(run, tmp_path):
    (tmp_path / "vault").mkdir()
    for link, target in (("talk.st", "vault/one"), ("second", "talk.st")):
        (tmp_path / link).symlink_to(target)
    for file in ("talk.st", "second"):
        assert run("--session", file, "-n", 2, "-p", f"through {file}").returncode == 0
    assert (tmp_path / "second").is_symlink()
    assert (tmp_path / "talk.st").is_symlink()
    (real,) = (tmp_path / "vault").iterdir()
    found = session_file.find(real)
    assert found is not None
    assert [message["content"] for message in found.messages[::2]] == ["through talk.st", "through second"]
    assert real.stat().st_mode & 0o777 == 0o600
    saved.save(saved.Saved("m", Settings(), []), tmp_path / "talk.st")
    assert (tmp_path / "talk.st").is_symlink()
    assert saved.load(real) == saved.Saved("m", Settings(), [])


@pytest.mark.parametrize("token", [5000, 10**30])
def test_ids_that_the_model_lacks_are_a_damaged_conversation(tiny, tmp_path, token):
    path, conversation = tmp_path / "talk.st", talk_with(tiny)
    list(conversation.reply("the fox"))
    conversation.replies = [[token]]
    session_file.SessionFile(conversation, path).save()
    again = talk_with(tiny)
    with pytest.raises(CheckpointError, match="its conversation is damaged"):
        session_file.SessionFile(again, path).resume(session_file.find(path) or pytest.fail("no conversation"))
    assert again.session.tokens == again.messages == []
    conversation.replies, conversation.session.tokens[-1] = [[1]], token % 2**31 + 1000
    session_file.SessionFile(conversation, path).save()
    with pytest.raises(CheckpointError, match="the model lacks"):
        session_file.SessionFile(again, path).resume(session_file.find(path) or pytest.fail("no conversation"))
    assert again.session.tokens == again.messages == []


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_ends_a_reply_and_the_conversation_is_kept(tiny_model, tmp_path, name):
    line = [PARTITA, "chat", str(tiny_model), "--backend", "numpy", "--session", "talk.st", "-n", "1000000", "-p", "on"]
    with subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        said = child.stdout.read(50)
        number = signal.Signals[name]
        child.send_signal(number)
        rest, error = child.communicate(timeout=30)
    assert (child.returncode, error) == (128 + number, b"")
    found = session_file.find(tmp_path / "talk.st")
    assert found is not None
    assert found.messages[0]["content"] == "on"
    assert found.messages[1]["content"].startswith((said + rest).decode(errors="replace")[:20])
    assert [file.name for file in tmp_path.iterdir()] == ["talk.st"]
