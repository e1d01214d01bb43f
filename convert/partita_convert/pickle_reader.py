"""Folders of PyTorch `.bin` weights, for those who ask for it: a child process makes safetensors of them first.

Not here: unpickling (that is `pickle_child`, a program of its own, which alone imports torch). Invariants: nothing is
unpickled unless the caller says so; nothing in a pickle runs; the weights lie on disk once more, beside the place that
is written to, only while they are used.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from partita.checkpoint.base import Checkpoint
from partita.checkpoint.names import canonical
from partita.checkpoint.open import open_checkpoint
from partita.errors import CheckpointError, DataError, PartitaError
from partita.files.atomic import scratch_folder
from partita.files.bounded import SETTINGS, find, is_table, read_bytes
from partita.files.safetensors import MAX_TENSORS, shard_table

SINGLE, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_CHILD = Path(__file__).with_name("pickle_child.py")
_KEPT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR", "TEMP", "TMP", "LANG", "LC_ALL")


def is_pickled(folder: Path) -> bool:
    """Whether the only weights of a folder are PyTorch's pickled ones."""
    return (
        folder.is_dir()
        and not any(folder.glob("*.safetensors"))
        and ((folder / SINGLE).is_file() or (folder / INDEX).is_file())
    )


@contextmanager
def open_source(path: Path, *, allow_pickle: bool, near: Path) -> Generator[Checkpoint, None, None]:
    """`open_checkpoint`, and the same for a folder of pickled weights if `allow_pickle`.

    near: the place that will be written to; the intermediate files lie beside it. CheckpointError: pickled weights that
    were not allowed, hold more than tensors, or are damaged.
    """
    if not is_pickled(path):
        yield open_checkpoint(path)
        return
    if not allow_pickle:
        raise refusal(path)
    with scratch_folder(near) as scratch:
        yield _unpickled(path, scratch)


def refusal(folder: Path) -> CheckpointError:
    return CheckpointError(
        f"{folder}: its weights are pickles ({SINGLE}), which can run code: if you trust their author, `allow_pickle` "
        "reads them in a separate process",
        field="allow_pickle",
    )


def _unpickled(folder: Path, scratch: Path) -> Checkpoint:
    """The checkpoint of `folder` with its weights from safetensors in `scratch`; everything else stays where it is."""
    index = find(folder, INDEX)
    table = None if index is None else shard_table(index, ".bin")
    files = sorted(set(table.values())) if table is not None else [SINGLE]
    for number, file in enumerate(files):
        place = find(folder, file)
        if place is None:
            raise CheckpointError(f"{INDEX} names {file}, which is not in {folder}; fetch the missing file")
        target = scratch / _shard(number, len(files))
        total = _convert(place, target)
        if total > MAX_TENSORS:
            raise CheckpointError(f"{file}: {total} tensors, the limit is {MAX_TENSORS}")
    for name in ("config.json", "generation_config.json"):
        if (place := find(folder, name)) is not None:
            (scratch / name).write_bytes(read_bytes(place, SETTINGS))
    try:
        checkpoint = open_checkpoint(scratch)
    except PartitaError as error:
        raise type(error)(str(error).replace(str(scratch), str(folder)), field=error.field) from None
    _check_index(table, checkpoint)
    return replace(checkpoint, path=folder)


def _shard(number: int, count: int) -> str:
    return f"model-{number + 1:05}-of-{count:05}.safetensors"


def _check_index(table: dict[str, str] | None, checkpoint: Checkpoint) -> None:
    """What the index promises must have come."""
    promised = canonical(table or {}, INDEX, alone="text_config" not in checkpoint.config)
    if lost := promised.keys() - checkpoint.names():
        name = min(lost)
        raise CheckpointError(f"{INDEX}: tensor {name!r} should be in {promised[name]} and is not")


def _convert(source: Path, target: Path) -> int:
    """Run the child for one file; how many tensors it wrote."""
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
    command = [sys.executable, "-I", "-B", "-W", "ignore", str(_CHILD), str(source.absolute()), str(target)]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={**environment, "OMP_NUM_THREADS": "1"},
            check=False,
        )
    except OSError as error:
        raise DataError(f"{source.name}: the process that reads it cannot be started: {error.strerror}") from error
    report = _report(done.stdout)
    written = report.get("tensors")
    if done.returncode == 0 and isinstance(written, int):
        return written
    if "error" in report:
        raise CheckpointError(f"{source.name} {report['error']}")
    said = done.stderr.decode("utf-8", "replace").strip().splitlines()
    if any("No space left" in line or "File too large" in line for line in said):
        raise DataError(f"{target.parent}: cannot be written: no space left for a copy of {source.name}")
    reason = f"signal {-done.returncode}" if done.returncode < 0 else f"{said[-1][:200] if said else done.returncode}"
    raise CheckpointError(f"{source.name}: the process that reads it ended early ({reason}); the file may be damaged")


def _report(output: bytes) -> dict[str, object]:
    try:
        report = json.loads(output.splitlines()[-1])
    except (ValueError, IndexError):
        return {}
    return report if is_table(report) else {}
