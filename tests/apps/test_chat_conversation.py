"""A conversation in one process: what a turn reads again, interruptions, and names that do not act on the terminal."""

from __future__ import annotations

import numpy as np
import pytest

import partita
from partita_apps import cli
from partita_apps.chat.commands import perform
from partita_apps.chat.layout import wrapped
from partita_apps.chat.show import last_turn
from partita_apps.conversation import saved
from partita_apps.conversation.local import CacheOptions, LocalConversation
from partita_apps.conversation.settings import Settings
from partita_apps.options import tell


def talk_with(model, **settings) -> LocalConversation:
    return LocalConversation(model, Settings.of({"max_tokens": 8, **settings}), CacheOptions())


def test_the_second_turn_reads_only_what_is_new(tiny):
    conversation = talk_with(tiny)
    list(conversation.reply("the fox"))
    held = list(conversation.session.tokens)
    list(conversation.reply("and the dog"))
    assert conversation.session.reused == len(held)
    assert conversation.session.tokens[: len(held)] == held
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"] * 2


def test_a_reply_that_is_closed_early_stays(tiny):
    conversation = talk_with(tiny, max_tokens=100)
    reply = conversation.reply("the fox")
    said = "".join(next(reply).text for _ in range(5))
    reply.close()
    assert conversation.messages[1] == {"role": "assistant", "content": said}
    held = list(conversation.session.tokens)
    list(conversation.reply("and"))
    assert conversation.session.reused == len(held)


def test_a_prompt_that_is_interrupted_between_chunks_keeps_what_was_read(tiny, tiny_model):
    conversation = talk_with(tiny)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(conversation.reply("the fox " * 150, on_progress=stop))
    assert conversation.messages == []
    assert len(conversation.session.tokens) == conversation.session.cache.offsets[0] > 0
    list(conversation.reply("the fox " * 150))
    assert conversation.session.reused > 0
    fresh = talk_with(partita.load(tiny_model, backend="numpy"))
    list(fresh.reply("the fox " * 150))
    assert conversation.messages == fresh.messages


def test_a_cache_that_went_on_by_itself_is_not_believed(tiny, tiny_model):
    conversation = talk_with(tiny)
    list(conversation.reply("the fox"))
    ops, cache = tiny.ops, conversation.session.cache  # as when a step is interrupted after it has written
    tiny.decoder(ops, ops.array(np.array([[7]], np.int32)), cache)
    list(conversation.reply("and"))
    fresh = talk_with(partita.load(tiny_model, backend="numpy"))
    list(fresh.reply("the fox"))
    list(fresh.reply("and"))
    assert conversation.messages == fresh.messages
    assert conversation.session.tokens == fresh.session.tokens
    assert len(conversation.session.tokens) == cache.offsets[0]


def test_another_system_prompt_pins_another_number_of_tokens(tiny):
    conversation = LocalConversation(tiny, Settings.of({"max_tokens": 4}), CacheOptions(sinks="system"))
    before = conversation.session.cache.spec.sinks
    conversation.change(conversation.settings.set("system", "the quick brown fox"))
    assert conversation.session.cache.spec.sinks > before
    list(conversation.reply("the dog"))
    conversation.clear()
    assert (conversation.messages, conversation.session.tokens) == ([], [])


def test_names_and_texts_of_files_do_not_control_the_terminal(tiny, tmp_path, capsys):
    evil = "evil\x1b]0;owned\x07\u202e"
    conversation = LocalConversation(tiny, Settings.of({"system": evil, "stop": [evil]}), CacheOptions())
    path = tmp_path / evil
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": evil}]
    saved.save(saved.Saved(evil, conversation.settings, messages), path)
    assert path.read_text().replace("\n", "").isprintable()
    assert saved.load(path).messages == messages
    for line in (f"/load {path}", "/show", f"/set system {evil}"):
        shown = wrapped(str(perform(conversation, line)))
        assert r"evil\x1b]0;owned\x07\u202e" in shown
        assert shown.replace("\n", "").isprintable()
    assert r"evil\x1b]0;owned\x07\u202e" in last_turn(conversation)
    tell(f"{evil} was trained on {evil}")
    cli.complain(f"no such option {evil}")
    assert capsys.readouterr().err.replace("\n", "").isprintable()
