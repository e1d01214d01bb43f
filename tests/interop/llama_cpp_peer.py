"""llama.cpp in a child process, by the Python that PARTITA_PEER_PYTHON names (`make interop`), with a float32 cache."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

CHILD = Path(__file__).with_name("llama_cpp_child.py")


def peer(
    path: Path, tokens: list[int], out: Path, texts: Sequence[str] = (), context: int = 128
) -> tuple[np.ndarray, list[list[int]]]:
    """(logits (T, V), ids of each text) of llama.cpp."""
    logits, told = _asked(path, {"tokens": tokens, "texts": list(texts)}, out, context)
    return logits, told["texts"]


def continued(path: Path, tokens: list[int], count: int, out: Path) -> tuple[np.ndarray, list[int]]:
    """(logits (T, V), all T tokens), of which the last `count` are those of the largest logits."""
    logits, told = _asked(path, {"tokens": tokens, "count": count}, out, 128)
    return logits, told["tokens"]


def peer_python() -> str:
    python = os.environ.get("PARTITA_PEER_PYTHON")
    assert python, "PARTITA_PEER_PYTHON names no Python that has llama-cpp-python: run `make interop`"
    return python


def _asked(path: Path, asked: dict[str, Any], out: Path, context: int) -> tuple[np.ndarray, dict[str, Any]]:
    done = subprocess.run(
        [peer_python(), str(CHILD), str(path), str(context), str(out)],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return np.load(out), json.loads(done.stdout)
