"""Tensors that are all in memory, as one safetensors file, by the format's own library.

Not here: atomicity (`atomic`), reading (`safetensors`), and models larger than memory (`partita_convert.shards`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Write a file, with the user's usual permissions or those of the file that is there. OSError: the disk refuses.

    metadata: strings beside the tensors; {"format": "pt"}, which other tools look for, if none. Nothing is copied but
    arrays that are not contiguous.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file  # pyright: ignore[reportUnknownVariableType]: a path's type has a gap

    path.touch()
    mode = path.stat().st_mode
    whole = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    try:
        save_file(whole, path, {"format": "pt"} if metadata is None else dict(metadata))
    except SafetensorError as error:
        raise OSError(str(error)) from error
    path.chmod(mode)  # the library leaves a file that is its owner's alone
