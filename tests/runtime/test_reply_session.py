"""Sessions whose model thinks and calls tools: pieces, stop strings, and what the next turn does not read again."""

from __future__ import annotations

import json

import pytest
from tests.chat_forms import write_model
from tests.scripted import sampler, script

import partita
from partita.cache.prefix_cache import PrefixCache
from partita.language_model import LanguageModel, Piece
from partita.text.transcript import Transcript

THOUGHT = "<think>\nThe fox.\n</think>\n\n"
CALL = '<tool_call>\n{"name": "jump", "arguments": {"over": "the dog"}}\n</tool_call>'


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LanguageModel]:
    folder = tmp_path_factory.mktemp("chat_forms")
    names = ("thinking", "opened", "harmony", "glimmer", "none")
    return {name: partita.load(write_model(folder / name, name), backend="numpy") for name in names}


@pytest.fixture
def say(monkeypatch, models):
    """say(name, reply, **options) is the pieces of a reply to one prompt."""

    def generate(name: str, reply: str, *, ends: bool = True, raw: bool = False, **options: object) -> list[Piece]:
        model = models[name]
        monkeypatch.setattr("partita.language_model.Sampler", sampler(script(model.tokenizer, reply, ends=ends)))
        return list(partita.generate(model, "the fox", raw=raw, **options))

    return generate


def text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def test_pieces_say_think_and_call(say, models):
    pieces = say("thinking", f"{THOUGHT}It jumps.\n{CALL}")
    assert text(pieces) == "It jumps."
    assert "".join(piece.thought for piece in pieces) == "The fox."
    (call,) = [piece.call for piece in pieces if piece.call is not None]
    assert (call.name, call.arguments, call.id, call.error) == ("jump", '{"over": "the dog"}', "call00000", None)
    assert call.written == CALL
    assert [piece.finish_reason for piece in pieces if piece.finish_reason] == ["stop"]
    assert pieces[-1].finish_reason == "stop"
    ids = [piece.token.id for piece in pieces if piece.token is not None]
    assert ids == script(models["thinking"].tokenizer, f"{THOUGHT}It jumps.\n{CALL}")[0]
    assert not any(piece.text and (piece.thought or piece.call) for piece in pieces)


def test_a_token_with_several_parts_is_in_the_first_of_them(say, models, monkeypatch):
    tokenizer = models["thinking"].tokenizer
    monkeypatch.setattr(type(tokenizer.stream()), "push", lambda stream, token: "<think>b</think>c" * (token == 7))
    monkeypatch.setattr("partita.language_model.Sampler", sampler([[7, 7, tokenizer.eos_id]]))
    pieces = list(partita.generate(models["thinking"], "the fox"))
    assert [(p.text, p.thought, p.token is not None) for p in pieces] == [
        ("", "b", True), ("c", "", False), ("<think>b</think>c", "", True), ("", "", True),
    ]  # fmt: skip


def test_raw_text_is_all_text(say):
    assert text(say("thinking", THOUGHT, raw=True)) == THOUGHT


def test_a_thought_that_is_cut_stays_a_thought(say):
    pieces = say("opened", "The fox jumps over", max_tokens=7)
    assert (text(pieces), pieces[-1].finish_reason) == ("", "length")
    assert "".join(piece.thought for piece in pieces).startswith("The fox")


@pytest.mark.parametrize("name", ["thinking", "harmony"])
def test_stop_strings_end_what_is_said_and_nothing_else(say, name):
    reply = f"<think>the END</think>the lazy END{CALL}" if name == "thinking" else (
        "<|channel|>analysis<|message|>the END<|end|><|start|>assistant<|channel|>final<|message|>the lazy END dog"
    )  # fmt: skip
    pieces = say(name, reply, stop=["END"])
    assert (text(pieces), pieces[-1].finish_reason) == ("the lazy ", "stop")
    assert "".join(piece.thought for piece in pieces) == "the END"
    assert not any(piece.call for piece in pieces)


def test_a_stop_string_does_not_go_on_behind_a_call(say):
    pieces = say("thinking", f"the E{CALL}ND dog", stop=["END"])
    assert text(pieces) == "the END dog"
    call = next(i for i, piece in enumerate(pieces) if piece.call is not None)
    assert text(pieces[:call]) == "the E"


# ---------------------------------------------------------------- the next turn


QUESTION = "the quick brown fox jumps over the lazy dog " * 6


@pytest.mark.parametrize(
    ("name", "reply", "kept"),
    [
        ("thinking", f"{THOUGHT}It jumps.", 0),
        ("opened", "The fox.\n</think>\n\nIt jumps.", 0),
        (
            "harmony",
            "<|channel|>analysis<|message|>The fox.<|end|><|start|>assistant<|channel|>final<|message|>It jumps.",
            1,
        ),
        ("glimmer", " to=self<|message|>The fox.<|eom|><|start|>assistant to=user<|message|>It jumps.", None),
        ("thinking", "It jumps.", None),
        ("none", "It jumps.", None),
    ],
)
def test_a_second_turn_reads_what_is_new_and_the_reply_without_its_thought(monkeypatch, models, name, reply, kept):
    """kept: tokens of the reply that the next turn begins with, None for all of them."""
    model = models[name]
    replies = script(model.tokenizer, reply, "Yes.")
    monkeypatch.setattr("partita.language_model.Sampler", sampler(replies))
    transcript, session = Transcript(model.tokenizer, model.template), model.session(prefixes=PrefixCache(1 << 26))
    messages = [{"role": "user", "content": QUESTION}]
    first = transcript.encode(messages)
    pieces = list(session.generate(first, reply=model.reply_to(first)))
    transcript.add_reply(replies[0][:-1])
    said = {"role": "assistant", "content": text(pieces), "reasoning_content": "".join(p.thought for p in pieces)}
    messages += [said, {"role": "user", "content": "and then"}]
    second = transcript.encode(messages)
    assert model.tokenizer.decode(second, specials=True) == model.template.render(messages)
    list(session.generate(second, reply=model.reply_to(second)))
    own = len(replies[0]) - 1 if kept is None else kept
    opened = len(model.tokenizer.encode("<think>\n")) if name == "opened" else 0
    assert session.reused == len(first) - opened + own


def test_a_thought_that_the_cache_cannot_be_taken_back_over_is_not_read_again(tmp_path, monkeypatch):
    """Sliding layers have turned over it: the snapshot of the prompt is the way back, and to a little before it."""
    folder = write_model(tmp_path / "sliding", "opened")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "mistral", "sliding_window": 32}))
    model = partita.load(folder, backend="numpy")
    replies = script(model.tokenizer, f"{QUESTION}\n</think>\n\nIt jumps.", "It does.</think>")
    monkeypatch.setattr("partita.language_model.Sampler", sampler(replies))
    session = model.session(prefixes=PrefixCache(1 << 26), chunk=64)
    messages = [{"role": "user", "content": QUESTION}]
    first = model.encode(messages)
    list(session.generate(first, reply=model.reply_to(first)))
    assert not session.cache.can_trim(len(replies[0]))
    second = model.encode(
        [*messages, {"role": "assistant", "content": "It jumps."}, {"role": "user", "content": "So?"}]
    )
    list(session.generate(second, reply=model.reply_to(second)))
    assert session.reused == len(first) - len(model.tokenizer.encode("<think>\n"))


def test_ids_of_a_reply_with_control_tokens_are_kept_where_the_template_writes_them(models):
    tokenizer, template = models["harmony"].tokenizer, models["harmony"].template
    transcript, messages = Transcript(tokenizer, template), [{"role": "user", "content": "the fox"}]
    first = transcript.encode(messages)
    said = [token for letter in "the dog" for token in tokenizer.encode(letter)]  # not as the library would split it
    reply = [*tokenizer.encode("<|channel|>final<|message|>", specials=True), *said]
    transcript.add_reply(reply)
    messages.append({"role": "assistant", "content": "the dog"})
    again = transcript.encode(messages)
    assert again[: len(first) + len(reply)] == [*first, *reply]
    assert tokenizer.decode(again, specials=True) == template.render(messages)
