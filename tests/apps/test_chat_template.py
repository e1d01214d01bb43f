"""What a person tells the chat template, and a template that does not end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pexpect
import psutil
import pytest

import partita
from partita.errors import DataError
from partita.language_model import LanguageModel
from partita.text.chat_template import parse_variable
from partita_apps.chat.commands import perform
from partita_apps.conversation.local import CacheOptions, LocalConversation
from partita_apps.conversation.settings import Settings

from . import command

# Newer Pythons warn of fork in a process that has threads; the child here does nothing but exec.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")

PARTITA = str(Path(sys.executable).with_name("partita"))
EFFORT = (
    "{% for m in messages %}{{ m.content }}|{% endfor %}{{ effort | default('none') }}{{ (tools or []) | length }}>"
)
HANGS = "{% if messages[-1].content == 'hang' %}{{ (messages|length + 2) ** (7 ** 9) > 1 }}{% endif %}" + EFFORT


def with_template(model: Path, folder: Path, template: str) -> Path:
    """The same model with another chat template."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    return folder


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_template(tiny_model, tmp_path_factory.mktemp("models") / "effort", EFFORT)


@pytest.fixture(scope="module")
def model(folder: Path) -> LanguageModel:
    return partita.load(folder, backend="numpy")


@pytest.fixture(scope="module")
def hanging(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_template(tiny_model, tmp_path_factory.mktemp("models") / "hangs", HANGS)


def chat(*arguments: object) -> subprocess.CompletedProcess[str]:
    return command.run("chat", *arguments, "--backend", "numpy")


def text_of(conversation: LocalConversation, prompt: str = "the fox") -> str:
    return conversation.model.tokenizer.decode(conversation.encode(prompt), specials=True)


@pytest.mark.parametrize(
    ("text", "variable"),
    [
        ("enable_thinking=false", ("enable_thinking", False)),
        ("effort=high", ("effort", "high")),
        ("effort = high", ("effort", " high")),
        ("effort=", ("effort", "")),
        ('effort="3"', ("effort", "3")),
        ("n=3", ("n", 3)),
        ('x={"a": [1, null]}', ("x", {"a": [1, None]})),
        ("x=a=b", ("x", "a=b")),
        ("x=NaN", ("x", "NaN")),
        ("x=[1", ("x", "[1")),
    ],
)
def test_a_variable_is_json_or_text(text, variable):
    assert parse_variable(text) == variable


@pytest.mark.parametrize(
    "text", ["effort", "=high", "a b=1", "1a=1", "messages=[]", "add_generation_prompt=false", "x=" + "[" * 100_000]
)
def test_what_is_not_a_variable_is_a_mistake(text):
    with pytest.raises(DataError, match=r"NAME=VALUE|too deeply"):
        parse_variable(text)


def test_the_template_gets_the_variables(model, folder):
    conversation = LocalConversation(model, Settings.of({"template_var": {"effort": "high"}}), CacheOptions())
    assert text_of(conversation) == "the fox|high0>"
    assert perform(conversation, "/set template-var effort=low") == 'template_var: effort="low"'
    assert (
        perform(conversation, '/set template_var tools=[{"name": "x"}]')
        == 'template_var: effort="low", tools=[{"name": "x"}]'
    )
    assert text_of(conversation) == "the fox|low1>"
    assert perform(conversation, "/set template_var none") == "template_var: none"
    assert text_of(conversation) == "the fox|none0>"
    assert model.tokenizer.decode(model.encode("the fox", effort="high")) == "the fox|high0>"
    result = chat(folder, "-p", "the fox", "-n", 1, "--json", "--template-var", "effort=high", "--template-var", "x=1")
    assert json.loads(result.stdout)["prompt_tokens"] == len(model.encode("the fox", effort="high"))
    assert result.stderr == "the model's chat template does not read x\n"


def test_the_pinned_beginning_is_what_the_template_makes_of_it(model):
    conversation = LocalConversation(model, Settings.of({"template_var": {"effort": "x"}}), CacheOptions(64, "system"))
    before = conversation.session
    conversation.change(conversation.settings.set_text("template_var", "effort=y"))
    assert conversation.session is not before


def test_variables_survive_a_file(model, tmp_path):
    conversation = LocalConversation(model, Settings.of({"template_var": {"effort": [1, None]}}), CacheOptions())
    perform(conversation, f"/save {tmp_path / 'talk.json'}")
    other = LocalConversation(model, Settings(), CacheOptions())
    perform(other, f"/load {tmp_path / 'talk.json'}")
    assert other.settings == conversation.settings
    broken = json.loads((tmp_path / "talk.json").read_text())
    broken["settings"]["template_var"] = {"messages": 1}
    (tmp_path / "talk.json").write_text(json.dumps(broken))
    with pytest.raises(DataError, match="template_var"):
        perform(other, f"/load {tmp_path / 'talk.json'}")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--template-var", "effort"], "is not NAME=VALUE"),
        (["--template-var", "messages=1"], "is not NAME=VALUE"),
        (["--template-var", "effort=high", "--raw"], "--raw leaves out"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(folder, options, words):
    result = chat(folder, "-p", "x", *options)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert words in result.stderr


def test_a_template_that_does_not_end_is_one_line(hanging):
    result = chat(hanging, "-p", "hang")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "partita: chat template: it did not finish within 5 seconds\n"


def test_ctrl_c_ends_a_prompt_whose_template_does_not(hanging):
    line = [PARTITA, "chat", str(hanging), "-p", "hang", "--backend", "numpy"]
    with subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        renderer = renderer_at_work(running.pid)
        os.kill(running.pid, signal.SIGINT)
        out, err = running.communicate(timeout=60)
    assert (running.returncode, out, err) == (130, b"", b"")
    assert not renderer.is_running()


def test_ctrl_c_takes_a_turn_back_whose_template_does_not_end(hanging, tmp_path):
    environment = {**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "HOME": str(tmp_path)}
    arguments = ["chat", str(hanging), "--backend", "numpy", "-n", "4"]
    child = pexpect.spawn(PARTITA, arguments, env=environment, encoding="utf-8", timeout=30, cwd=tmp_path)
    try:
        child.expect("> ")
        child.send("hang\r")
        renderer = renderer_at_work(child.pid)
        child.send("\x03")
        child.expect("stopped before the reply began")  # and not that the template's time is over
        assert not renderer.is_running()
        child.send("the fox\r")
        child.expect("4 tokens")
    finally:
        if child.isalive():
            child.kill(signal.SIGKILL)
            child.wait()
        child.close()


def renderer_at_work(pid: int) -> psutil.Process:
    """The process that renders for another one, once it is in the middle of something long."""
    deadline = time.monotonic() + 30
    while True:
        for found in psutil.Process(pid).children(recursive=True):
            if any("template_child" in word for word in found.cmdline()) and found.cpu_times().user > 0.5:
                return found
        assert time.monotonic() < deadline
        time.sleep(0.02)
