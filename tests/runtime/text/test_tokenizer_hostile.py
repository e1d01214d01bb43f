"""Tokenizers with hostile fields, in a process of their own, since a crash and limits are the process's."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ...conftest import write_tokenizer

CHILD = Path(__file__).with_name("tokenizer_child.py")


def run(folder, count):
    command = [sys.executable, "-B", "-W", "error", str(CHILD), str(folder), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr[-4000:]


def test_hundreds_of_hostile_tokenizers_work_or_are_one_line(tmp_path):
    run(tmp_path, 400)


@pytest.mark.slow
def test_thousands_of_hostile_tokenizers_work_or_are_one_line(tmp_path):
    run(tmp_path, 6000)


CTRL_C = """
import os, signal, sys, threading
from pathlib import Path
from partita.text import guard as tokenizer_guard
from partita.text.load import tokenizer_from_folder
from partita.text.tokenizer import Tokenizer
tokenizer_guard._SECONDS = 2
tokenizer = tokenizer_from_folder(Path(sys.argv[1]))
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    tokenizer.encode("x" * 9_000)
except KeyboardInterrupt:
    print("answered")
"""


@pytest.mark.parametrize("expression", ["x+{0}{0}y", "[wx]+{0}{0}[yz]"])
def test_ctrl_c_is_answered_while_an_expression_tries_all_that_it_may(tmp_path, expression):
    """Within 2 s, or it would be the expression that is refused. What goes on in a thread does not keep the program."""
    write_tokenizer(tmp_path)
    document = json.loads((tmp_path / "tokenizer.json").read_text())
    pattern = {"Regex": expression.format(f"(?:{'|'.join(['x'] * 30)})")}
    split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    steps = {"type": "Sequence", "pretokenizers": [split, document["pre_tokenizer"]]}
    (tmp_path / "tokenizer.json").write_text(json.dumps({**document, "pre_tokenizer": steps}))
    done = subprocess.run([sys.executable, "-c", CTRL_C, str(tmp_path)], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr, done.returncode) == ("answered\n", "", 0)
