"""`partita chat -p`, pipes, JSON and trace through the real command; the parts that show text by themselves."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import partita
from partita.cache.state import Slots
from partita.errors import DataError
from partita.inference.runner import Generated
from partita_apps import cli
from partita_apps.chat.commands import perform
from partita_apps.chat.layout import wrapped
from partita_apps.chat.show import Lines, last_turn
from partita_apps.chat.trace import Trace, bar, cells, fitted, percent
from partita_apps.conversation import saved
from partita_apps.conversation.conversation import CacheOptions, Conversation
from partita_apps.conversation.settings import NAMES, Settings
from partita_apps.options import tell

PARTITA = str(Path(sys.executable).with_name("partita"))
FIELDS = {
    "text",
    "reasoning",
    "tool_calls",
    "tokens",
    "prompt_tokens",
    "finish_reason",
    "model",
    "adapter",
    "backend",
    "device",
    "dtype",
    "kv",
    "context",
    "sinks",
    "cache_bytes",
    "first_token_seconds",
    "tokens_per_second",
    "prompt_tokens_per_second",
    "peak_bytes",
    "seed",
    "forgotten_tokens",
    "reused_tokens",
    "draft",
}


def run(*arguments: object, text: str = "") -> subprocess.CompletedProcess[str]:
    command = [PARTITA, "chat", *map(str, arguments)]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="session")
def ask(tiny_model):
    """ask(*options, text=) is the JSON document of one answer of the tiny model."""

    def answer(*options: object, text: str = "") -> dict:
        result = run(tiny_model, "--backend", "numpy", "--json", *options, text=text)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    return answer


@pytest.fixture(scope="session")
def tiny(tiny_model):
    return partita.load(tiny_model, backend="numpy")


def talk_with(model, **settings) -> Conversation:
    return Conversation(model, Settings.of({"max_tokens": 8, **settings}), CacheOptions())


@pytest.mark.parametrize("backend", ["torch", "mlx"])
def test_the_default_model_knows_the_capital_of_france(default_model, backend):
    assert default_model.exists()
    result = run("-p", "What is the capital of France?", "--backend", backend, "--json", "--threads", 1)
    found = json.loads(result.stdout)
    assert "Paris" in found["text"]
    assert found["finish_reason"] == "stop"
    assert found["backend"] == backend
    assert found["prompt_tokens"] == 37


def test_the_document(ask, tiny):
    found = ask("-p", "the fox", "-n", 20)
    assert set(found) == FIELDS
    assert len(found["tokens"]) == 20
    assert found["text"] == tiny.tokenizer.decode(found["tokens"])
    assert found["prompt_tokens"] == len(tiny.encode("the fox"))
    assert (found["finish_reason"], found["backend"], found["kv"], found["context"]) == ("length", "numpy", "32", 512)
    assert found["first_token_seconds"] > 0
    assert found["tokens_per_second"] > 0
    assert found["prompt_tokens_per_second"] == pytest.approx(found["prompt_tokens"] / found["first_token_seconds"])
    assert found["peak_bytes"] > found["cache_bytes"] > 0
    assert (found["seed"], found["forgotten_tokens"]) == (None, 0)
    assert (found["reused_tokens"], found["draft"]) == (0, None)
    assert ask("-p", "the fox", "-n", 1)["tokens_per_second"] is None


def test_text_is_streamed_plain_and_nothing_else(ask, tiny_model):
    expected = ask("-p", "the fox", "-n", 20)["text"]
    result = run(tiny_model, "--backend", "numpy", "-p", "the fox", "-n", 20)
    assert result.stdout == expected + "\n"
    assert result.stderr == ""


def test_where_the_prompt_comes_from(ask):
    expected = ask("-p", "the fox\nand", "-n", 5)["tokens"]
    assert ask("-n", 5, text="the fox\nand\n")["tokens"] == expected
    assert ask("-p", "-", "-n", 5, text="the fox\nand")["tokens"] == expected
    assert ask("-p", "the fox\nand", "-n", 5, text="something else")["tokens"] == expected


@pytest.mark.parametrize(
    ("options", "text", "words"),
    [
        (["-p", ""], "", "the prompt is empty"),
        (["-p", " \n"], "", "the prompt is empty"),
        (["-p", "-"], "", "the prompt is empty"),
        ([], "", "there is no prompt: give -p TEXT"),
        ([], "\n", "the prompt is empty"),
        (["-p", "x", "--temperature", "-1"], "", "--temperature must be"),
        (["-p", "x", "--temperature", "nan"], "", "--temperature must be"),
        (["-p", "x", "--top-p", "0"], "", "--top-p must be"),
        (["-p", "x", "--seed", "-4"], "", "--seed must be"),
        (["-p", "x", "-n", "0"], "", "--max-tokens must be >= 1"),
        (["-p", "x", "--stop", ""], "", "--stop must be"),
        (["-p", "x", "--kv", "k3v3"], "", "--kv"),
        (["-p", "x", "--context", "513"], "", "--context 513 is beyond the 512"),
        (["-p", "x", "--context", "8", "--sinks", "8"], "", "--sinks must be from 0 to 7"),
        (["-p", "x", "--sinks", "most"], "", "expected a number of tokens or system, got 'most'"),
        (["-p", "x", "--raw", "--sinks", "system"], "", "--raw leaves out"),
        (["-p", "x", "--raw", "--system", "Be brief."], "", "--raw leaves out"),
        (["-p", "x", "--dtype", "int3"], "", "unknown --dtype"),
        (["-p", "x", "--threads", "0"], "", "--threads must be"),
        (["-p", "x", "--raw", "--session", "talk.st"], "", "--raw has none"),
        (["-p", "x", "--session", "no/where.st"], "", "no folder no"),
        (["-p", "x", "--session", "."], "", "is a folder"),
        (["-p", "x", "--draft", "tiny", "--lookup"], "", "--draft and --lookup exclude each other"),
        (["-p", "x", "--draft", "./nowhere.gguf"], "", "nowhere.gguf"),
        (["-p", "x", "--backend", "abacus"], "", "unknown --backend"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(tiny_model, options, text, words):
    options = options if "--backend" in options else [*options, "--backend", "numpy"]
    result = run(tiny_model, *options, text=text)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("partita: ")
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


def test_standard_input_that_is_no_text(tiny_model):
    result = subprocess.run([PARTITA, "chat", str(tiny_model)], input=b"ab\xff", capture_output=True, timeout=60)
    assert result.returncode == 2
    assert result.stderr == b"partita: standard input is not UTF-8 text (byte 2): convert it first\n"


def test_chance_is_told_and_can_be_repeated(ask):
    first = ask("-p", "the fox", "-n", 30, "--temperature", 1)
    again = ask("-p", "the fox", "-n", 30, "--temperature", 1, "--seed", first["seed"])
    assert isinstance(first["seed"], int)
    assert again["tokens"] == first["tokens"]
    assert ask("-p", "the fox", "-n", 30, "--temperature", 1, "--seed", first["seed"] ^ 1)["tokens"] != first["tokens"]


def test_a_stop_string_ends_the_reply_before_it(ask):
    whole = ask("-p", "the fox", "-n", 30)["text"]
    stop = whole[10:13]
    found = ask("-p", "the fox", "-n", 30, "--stop", stop)
    assert (found["text"], found["finish_reason"]) == (whole[: whole.index(stop)], "stop")


def test_raw_leaves_the_template_out(ask, tiny):
    found = ask("--raw", "-p", "the fox", "-n", 5)
    assert found["prompt_tokens"] == len(tiny.tokenizer.encode("the fox"))
    pieces = list(tiny.session().generate(tiny.encode("the fox", raw=True), max_tokens=5))
    assert found["text"] == "".join(piece.text for piece in pieces)


def test_a_base_model_says_that_raw_is_for_it(tiny_model, tmp_path):
    for file in tiny_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    result = run(tmp_path, "--backend", "numpy", "-p", "x")
    assert result.returncode == 2
    assert "--raw" in result.stderr
    assert run(tmp_path, "--backend", "numpy", "-p", "x", "--raw", "-n", 2).returncode == 0


def test_a_prompt_longer_than_the_context_rolls_and_says_so(tiny_model):
    options = [tiny_model, "--backend", "numpy", "-p", "the fox " * 40, "-n", 8, "--context", 64, "--sinks", 6]
    result = run(*options, "--json")
    found = json.loads(result.stdout)
    assert found["prompt_tokens"] > 64
    assert found["forgotten_tokens"] == found["prompt_tokens"] + 7 - 64
    assert result.stderr.count("\n") == 1
    assert f"has {found['prompt_tokens']} tokens and the context 64" in result.stderr
    assert "the first 6 and the latest stay" in result.stderr
    short = run(*options[:3], "-p", "the fox", "-n", 80, "--context", 64)
    assert "longer than the context of 64 tokens" in short.stderr


def test_system_sinks_hold_the_system_prompt(ask, tiny):
    found = ask("-p", "the fox", "-n", 2, "--system", "the lazy dog", "--sinks", "system")
    shared = "<|im_start|>system\nthe lazy dog<|im_end|>\n<|im_start|>user\n"
    assert found["sinks"] == len(tiny.tokenizer.encode(shared, specials=True))


def test_the_trace_in_the_document(ask):
    found = ask("-p", "the fox", "-n", 6, "--trace")
    assert set(found) == FIELDS | {"trace"}
    assert [row["id"] for row in found["trace"]] == found["tokens"]
    for row in found["trace"]:
        assert set(row) == {"id", "text", "probability", "alternatives", "milliseconds"}
        assert row["probability"] == pytest.approx(row["alternatives"][0]["probability"])
        assert row["milliseconds"] > 0
        shares = [other["probability"] for other in row["alternatives"]]
        assert shares == sorted(shares, reverse=True)


def test_the_trace_for_people_is_a_row_a_token_and_then_the_text(ask, tiny_model):
    result = run(tiny_model, "--backend", "numpy", "-p", "the fox", "-n", 6, "--trace")
    rows = result.stdout.splitlines()[:7]
    assert rows[0].split()[:3] == ["#", "token", "probability"]
    assert [row.split()[0] for row in rows[1:]] == list("123456")
    assert {len(row) for row in rows} == {79}
    assert result.stdout.endswith(ask("-p", "the fox", "-n", 6)["text"] + "\n")


# The parts


@pytest.mark.parametrize("width", [80, 100, 120])
def test_trace_rows_are_as_wide_as_their_header(tiny, width):
    rows = Trace(tiny.tokenizer, width)
    ids = [0, 100, 250, 270, 302, 299]
    token = Generated(302, 0.0123, 0.00002, tuple((i, 0.1) for i in ids))
    assert cells(plain(rows.row(token, Slots(4, 12345, 100)))) == cells(plain(rows.header())) < width


def plain(styled: str) -> str:
    import click

    return click.unstyle(styled)


@given(st.text(max_size=30), st.integers(1, 20))
def test_fitted_is_exact(text, width):
    text = "".join(c for c in text if c.isprintable())
    assert cells(fitted(text, width)) == width


@given(st.floats(0, 1))
def test_bars_and_shares_keep_their_width(p):
    assert len(bar(p, 8)) == 8
    assert len(percent(p)) == 6


@given(st.text(st.sampled_from("ab \n\t日🎉"), max_size=60), st.integers(4, 20), st.lists(st.integers(0, 60)))
def test_breaking_lines_changes_white_space_only(text, width, cuts):
    lines, places = Lines(width), [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pushed = [lines.push(text[a:b]) for a, b in pairwise(places)]
    shown = "".join(pushed) + lines.finish()
    assert "".join(shown.split()) == "".join(text.split())
    for line in shown.split("\n"):
        if "\t" not in line and "日" not in line and "🎉" not in line:
            assert len(line) <= width or " " not in line


def test_words_are_not_broken():
    lines = Lines(10)
    assert lines.push("one two three four") + lines.finish() == "one two \nthree four"


@given(st.lists(st.integers(0, 60)))
def test_a_model_does_not_control_the_terminal(cuts):
    text = "a\x1b]0;title\x07\r\x9b2J\r\n\tb \u202ec\r\nd\u2028\u200be\u200d\r"
    lines, places = Lines(80), [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    shown = "".join(lines.push(text[a:b]) for a, b in pairwise(places)) + lines.finish()
    assert shown == "a\\x1b]0;title\\x07\\r\\x9b2J\n\tb \\u202ec\nd\\u2028\\u200be\u200d\\r"


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_reads_what_it_shows(name):
    given = {"temperature": 0.5, "seed": 3, "system": "be brief", "stop": ["x"], "template_var": {"x": 1}}
    settings = Settings.of(given)
    text = {"stop": "x", "template_var": "x=1"}.get(name, str(settings.get(name)))
    assert settings.set_text(name, text) == settings
    with pytest.raises(DataError) as caught:
        Settings.of({name: object()})
    assert name in str(caught.value)


@pytest.mark.parametrize(("name", "text"), [("top_k", "1.5"), ("temperature", "hot"), ("colour", "1"), ("seed", "-1")])
def test_a_setting_that_cannot_be(name, text):
    with pytest.raises(DataError):
        Settings().set_text(name, text)


def test_what_may_be_absent_is_taken_away():
    settings = Settings.of({"seed": 3, "system": "be brief", "stop": ["x"]})
    for name in ("seed", "system", "stop"):
        settings = settings.set_text(name, "none")
    assert settings == Settings()


@given(st.lists(st.tuples(st.text(max_size=9), st.text(max_size=9)), max_size=4), st.text(max_size=9))
def test_a_saved_conversation_comes_back(tmp_path_factory, turns, system):
    path = tmp_path_factory.getbasetemp() / "conversation.json"
    messages = [{"role": r, "content": t} for pair in turns for r, t in zip(("user", "assistant"), pair, strict=True)]
    kept = saved.Saved("a model", Settings.of({"system": system, "temperature": 0.5}), messages)
    saved.save(kept, path)
    assert saved.load(path) == kept


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: "no json", "not a saved conversation"),
        (lambda d: "[]", "not a saved conversation"),
        (lambda d: "[" * 100_000, "not a saved conversation"),
        (lambda d: json.dumps({**d, "partita_conversation": 2}), "format 2"),
        (lambda d: json.dumps({**d, "messages": [{"role": "user"}]}), "content is missing"),
        (lambda d: json.dumps({**d, "messages": 3}), "damaged"),
        (lambda d: json.dumps({**d, "messages": [{"role": "user", "content": "x"}]}), "no answer"),
        (lambda d: json.dumps({**d, "messages": [{"role": "system", "content": "x"}]}), "message 1"),
        (lambda d: json.dumps({**d, "settings": {"temperature": "hot"}}), "temperature"),
        (lambda d: json.dumps({**d, "settings": {"temperature": -1}}), "temperature"),
        (lambda d: json.dumps({key: d[key] for key in d if key != "model"}), "model is missing"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path, change, words):
    path = tmp_path / "conversation.json"
    saved.save(saved.Saved("m", Settings(), []), path)
    path.write_text(change(json.loads(path.read_text())))
    with pytest.raises(DataError) as caught:
        saved.load(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_saving_is_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "conversation.json"
    path.write_text("before")

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("partita.files.atomic.os.fsync", full)
    with pytest.raises(DataError, match="No space left"):
        saved.save(saved.Saved("m", Settings(), []), path)
    assert [file.name for file in tmp_path.iterdir()] == ["conversation.json"]
    assert path.read_text() == "before"
    with pytest.raises(DataError, match="cannot be written"):
        saved.save(saved.Saved("m", Settings(), []), tmp_path / "no" / "where.json")


# A conversation in one process


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
    conversation = Conversation(tiny, Settings.of({"max_tokens": 4}), CacheOptions(sinks="system"))
    before = conversation.session.cache.spec.sinks
    conversation.change(conversation.settings.set("system", "the quick brown fox"))
    assert conversation.session.cache.spec.sinks > before
    list(conversation.reply("the dog"))
    conversation.clear()
    assert (conversation.messages, conversation.session.tokens) == ([], [])


def test_names_and_texts_of_files_do_not_control_the_terminal(tiny, tmp_path, capsys):
    evil = "evil\x1b]0;owned\x07\u202e"
    conversation = Conversation(tiny, Settings.of({"system": evil, "stop": [evil]}), CacheOptions())
    path = tmp_path / evil
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": evil}]
    saved.save(saved.Saved(evil, conversation.settings, messages), path)
    assert path.read_text().replace("\n", "").isprintable()
    assert saved.load(path).messages == messages
    for line in (f"/load {path}", "/show", f"/set system {evil}"):
        told = wrapped(str(perform(conversation, line)))
        assert r"evil\x1b]0;owned\x07\u202e" in told
        assert told.replace("\n", "").isprintable()
    assert r"evil\x1b]0;owned\x07\u202e" in last_turn(conversation)
    tell(f"{evil} was trained on {evil}")
    cli.complain(f"no such option {evil}")
    assert capsys.readouterr().err.replace("\n", "").isprintable()
