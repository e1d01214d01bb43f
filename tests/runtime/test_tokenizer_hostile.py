"""Tokenizers with hostile fields, in a process of their own, since a crash and limits are the process's."""

import subprocess
import sys
from pathlib import Path

import pytest

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
