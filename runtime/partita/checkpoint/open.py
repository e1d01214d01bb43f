"""Which format a path is in, and the checkpoint over it."""

from __future__ import annotations

from pathlib import Path

from ..errors import CheckpointError
from ..files.bounded import begins_with
from .base import Checkpoint
from .folder import FolderCheckpoint
from .gguf import header
from .gguf.checkpoint import GgufCheckpoint


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Open a model folder or a `.gguf` file. Reads headers only; tensors are mapped and read on demand."""
    path = Path(path)
    if path.is_dir():
        return FolderCheckpoint.open(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file or folder")
    if begins_with(path, header.MAGIC):  # which says more than a name
        return GgufCheckpoint.open(path)
    if path.suffix == ".safetensors":
        raise CheckpointError(f"{path.name}: name the folder that holds it, with its config.json")
    if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"):
        raise CheckpointError(f"{path.name}: pickled weights can run code and are not opened; use safetensors or GGUF")
    return GgufCheckpoint.open(path)
