"""PyTorch's .bin weights: read in a separate process when asked for, refused otherwise, and never run."""

from __future__ import annotations

import io
import json
import os
import pickle
import runpy
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from partita.checkpoint.open import open_checkpoint
from partita.errors import CheckpointError, DataError
from partita_convert import pickle_reader
from partita_convert.pickle_reader import open_source
from partita_convert.write_folder import write_mlx

CHILD = Path(pickle_reader.__file__).with_name("pickle_child.py")
PARTS = runpy.run_path(str(CHILD))  # the program's functions, for what needs no process of its own (2 s each)


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    state = OrderedDict(
        {
            "model.embed_tokens.weight": torch.randn(6, 8).to(torch.bfloat16),
            "model.norm.weight": torch.randn(8),
            "turned": torch.randn(4, 3, dtype=torch.float16).t(),
            "scalar": torch.tensor(2.5),
            "count": torch.arange(5),
            "none": torch.zeros(0, 4),
            "parameter": torch.nn.Parameter(torch.randn(3)),
            "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        }
    )
    state["lm_head.weight"] = state["model.embed_tokens.weight"]  # tied: one storage
    state["part"] = state["model.norm.weight"][2:5]
    return state


def folder(path: Path, state: Any = None, **more: Any) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text('{"model_type": "llama"}')
    (path / "tokenizer.json").write_text("{}")
    torch.save(tensors() if state is None else state, path / "pytorch_model.bin", **more)
    return path


def sharded(path: Path) -> Path:
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "llama"}')
    state, table = tensors(), {}
    for i, names in enumerate((list(state)[:4], list(state)[4:])):
        file = f"pytorch_model-0000{i + 1}-of-00002.bin"
        torch.save({name: state[name] for name in names}, path / file)
        table |= dict.fromkeys(names, file)
    (path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))
    return path


def read_here(path: Path) -> dict[str, torch.Tensor]:
    return PARTS["checked"](torch, PARTS["read"](torch, str(path / "pytorch_model.bin")))


def check(path: Path, near: Path) -> None:
    before = {file: file.read_bytes() for file in path.iterdir()}
    with open_source(path, allow_pickle=True, near=near) as checkpoint:
        expected = {name: value.detach() for name, value in tensors().items() if "inv_freq" not in name}
        assert set(checkpoint.names()) == set(expected)
        assert checkpoint.path == path
        for name, value in expected.items():
            read = checkpoint.read(name)
            assert isinstance(read, np.ndarray)
            assert read.shape == tuple(value.shape)
            assert read.tobytes() == value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes(), name
    assert {file: file.read_bytes() for file in path.iterdir()} == before
    assert [file.name for file in near.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("zipped", [True, False])
def test_a_single_file(tmp_path, zipped):
    """Both forms of the file: a zip since torch 1.6, and the older one."""
    check(folder(tmp_path / "m", _use_new_zipfile_serialization=zipped), tmp_path / "out")


def test_several_files_with_an_index(tmp_path):
    check(sharded(tmp_path / "m"), tmp_path / "out")


def test_conversion_writes_a_folder_that_opens(tmp_path):
    state = {"model.norm.weight": torch.randn(8)}
    path = folder(tmp_path / "m", state)
    with open_source(path, allow_pickle=True, near=tmp_path / "out") as checkpoint:
        write_mlx(checkpoint, tmp_path / "out")
    written = open_checkpoint(tmp_path / "out")
    assert written.names() == ("model.norm.weight",)
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m", "out"]


def test_without_the_flag(tmp_path):
    path = folder(tmp_path / "m")
    with pytest.raises(CheckpointError, match="`allow_pickle`"):
        open_source(path, allow_pickle=False, near=tmp_path / "out").__enter__()
    with pytest.raises(CheckpointError, match=r"convert\(allow_pickle=True\)"):
        open_checkpoint(path)


def test_safetensors_come_first(tmp_path):
    """A folder that has both is read as it always is, whatever is in the pickle."""
    from safetensors.numpy import save_file

    path = folder(tmp_path / "m", Run("touch", tmp_path / "ran"))
    save_file({"a": np.ones(2, np.float32)}, path / "model.safetensors")
    with open_source(path, allow_pickle=True, near=tmp_path / "out") as checkpoint:
        assert checkpoint.names() == ("a",)


# ---------------------------------------------------------------- what must not run


class Run:
    """Runs a command when it is unpickled without care."""

    def __init__(self, *command: Any) -> None:
        self.command = " ".join(map(str, command))

    def __reduce__(self):
        return os.system, (self.command,)


class Evaluate(Run):
    def __reduce__(self):
        return eval, (f"__import__('os').system({self.command!r})",)


@pytest.mark.parametrize("form", ["zip", "old", "bare", "nested", "storage"])
@pytest.mark.parametrize("kind", [Run, Evaluate])
def test_code_in_a_pickle_does_not_run(tmp_path, kind, form):
    ran = tmp_path / "ran"
    evil = kind("touch", ran)
    path = folder(tmp_path / "m")
    file = path / "pytorch_model.bin"
    match form:
        case "zip":
            torch.save({"a": evil}, file)
        case "old":
            torch.save({"a": evil}, file, _use_new_zipfile_serialization=False)
        case "bare":
            file.write_bytes(pickle.dumps(evil, protocol=2))
        case "nested":
            torch.save({"a": torch.ones(2), "b": [{"c": evil}]}, file)
        case _:
            replace_pickle(file, pickle.dumps({"a": evil}, protocol=2))
    with pytest.raises(PARTS["Refused"], match=r"could run code|not a readable"):
        read_here(path)
    assert not ran.exists()
    pickle.loads(pickle.dumps(evil))  # the same code, unpickled as such files should not be
    assert ran.exists()


def test_the_refusal_of_a_pickle_that_runs_code(tmp_path):
    path = folder(tmp_path / "m", {"a": Run("touch", tmp_path / "ran")})
    with pytest.raises(CheckpointError, match=r"^pytorch_model\.bin holds more than tensors \(posix\.system\)"):
        open_source(path, allow_pickle=True, near=tmp_path / "out").__enter__()
    assert [entry.name for entry in tmp_path.iterdir()] == ["m"]


def replace_pickle(file: Path, program: bytes) -> None:
    """The zip file with another pickle in it."""
    old = zipfile.ZipFile(io.BytesIO(file.read_bytes()))
    with zipfile.ZipFile(file, "w") as new:
        for entry in old.infolist():
            new.writestr(entry, program if entry.filename.endswith("data.pkl") else old.read(entry))


@pytest.mark.parametrize(
    "statement",
    [
        "import os; os.system('true')",
        "import subprocess; subprocess.run(['true'])",
        "import socket; socket.create_connection(('127.0.0.1', 9), 1)",
        "open('elsewhere', 'w')",
        "import os; os.remove('here')",
        "import os; os.fork()",
    ],
)
def test_the_process_ends_where_the_unpickler_would_not(tmp_path, statement):
    """Behind torch's own restrictions stands an audit hook: here it is asked directly."""
    (tmp_path / "here").touch()
    program = f"import runpy; child = runpy.run_path({str(CHILD)!r}); child['guard']('allowed')\n"
    program += f"open('allowed', 'wb').close(); print('so far', flush=True)\n{statement}\nprint('past')"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 86, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "so far"
    assert "tried to do more than hold tensors" in json.loads(second)["error"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["allowed", "here"]


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ([1, 2], "holds a list"),
        ({"a": torch.ones(2), "epoch": 3}, "holds 'epoch', a int"),
        ({"module": {"a": torch.ones(2)}}, "holds 'module', a dict"),
        ({"a": torch.eye(3).to_sparse()}, "sparse_coo"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "torch.complex64"),
    ],
)
def test_files_that_hold_something_else(tmp_path, state, words):
    with pytest.raises(PARTS["Refused"], match=words):
        read_here(folder(tmp_path / "m", state))


@pytest.mark.parametrize("damage", [lambda raw: b"", lambda raw: raw[:-200], lambda raw: b"junk" * 50])
def test_damaged_files(tmp_path, damage):
    path = folder(tmp_path / "m")
    file = path / "pytorch_model.bin"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(PARTS["Refused"], match="is not a readable PyTorch file"):
        read_here(path)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"a": "../x.bin"}, "not a file beside the index"),
        ({"b": "pytorch_model-00002-of-00002.bin"}, "which is not in"),
        ({"gone": "pytorch_model.bin"}, r"'gone' should be in pytorch_model\.bin and is not"),
    ],
)
def test_an_index_that_does_not_tell_the_truth(tmp_path, table, words):
    path = folder(tmp_path / "m")
    (path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": table}))
    with pytest.raises(CheckpointError, match=words):
        open_source(path, allow_pickle=True, near=tmp_path / "out").__enter__()


def test_without_torch(tmp_path, monkeypatch):
    """An interpreter that has no torch stands in for a machine that has none."""
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    bare.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bare))
    with pytest.raises(CheckpointError, match=r"needs torch .*not installed"):
        open_source(folder(tmp_path / "m"), allow_pickle=True, near=tmp_path / "out").__enter__()


def test_an_old_torch(tmp_path):
    (tmp_path / "torch.py").write_text("__version__ = '2.5.1+cpu'")
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import runpy\n"
    program += f"child = runpy.run_path({str(CHILD)!r})\ntry: child['main']('a', 'b')\n"
    program += "except child['Refused'] as error: print(error)"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True)
    assert done.stdout == "needs torch 2.10 to be read safely, 2.5.1+cpu is here\n"


def test_a_full_disk(tmp_path, monkeypatch):
    """The child's own limit on file sizes, set low, ends the write as a full disk does."""
    text = CHILD.read_text().replace("RLIMIT_FSIZE: 2 * size + 64 * MIB", "RLIMIT_FSIZE: 100")
    small = tmp_path / "child.py"
    small.write_text(text)
    monkeypatch.setattr(pickle_reader, "_CHILD", small)
    with pytest.raises(DataError, match="no space left for a copy of "):
        open_source(folder(tmp_path / "m"), allow_pickle=True, near=tmp_path / "out").__enter__()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["child.py", "m"]


def test_a_file_that_asks_for_too_much(tmp_path, monkeypatch):
    text = CHILD.read_text().replace("RLIMIT_CPU: SECONDS", "RLIMIT_CPU: 1 + 0 * SECONDS")
    text = text.replace(
        "    try:\n        tensors = checked", "    while True: pass\n    try:\n        tensors = checked"
    )
    slow = tmp_path / "child.py"
    slow.write_text(text)
    monkeypatch.setattr(pickle_reader, "_CHILD", slow)
    with pytest.raises(CheckpointError, match="ended early"):
        open_source(folder(tmp_path / "m"), allow_pickle=True, near=tmp_path / "out").__enter__()
