"""`partita chat -p`, pipes, JSON and trace through the real command."""

from __future__ import annotations

import json
import subprocess

import pytest

from . import command

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


def run(*arguments: object, text: str | bytes = "") -> subprocess.CompletedProcess[str]:
    return command.run("chat", *arguments, text=text)


@pytest.fixture(scope="session")
def ask(tiny_model):
    """ask(*options, text=) is the JSON document of one answer of the tiny model."""

    def answer(*options: object, text: str = "") -> dict:
        result = run(tiny_model, "--backend", "numpy", "--json", *options, text=text)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    return answer


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


def test_standard_input_that_is_not_text(tiny_model):
    result = run(tiny_model, text=b"ab\xff")
    assert result.returncode == 2
    assert result.stderr == "partita: standard input is not UTF-8 text (byte 2): convert it first\n"


def test_the_seed_is_reported_and_repeats_the_reply(ask):
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
