"""A program: one conversion, as the command does it. Run as `python fault_child.py SOURCE DEST FORM`.

Prints a line when it begins to write; a PartitaError is one line on standard error and exit status 2, Ctrl-C 130.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from partita.checkpoint import open_checkpoint
from partita.errors import PartitaError
from partita.quantization import Packed, quantize_weight
from partita_convert.write_folder import write_huggingface, write_mlx
from partita_convert.write_gguf import write_gguf


def four_bits(name: str, value: np.ndarray | Packed) -> np.ndarray | Packed:
    return quantize_weight(value, 4, 64) if isinstance(value, np.ndarray) and value.ndim == 2 else value


def convert(source: Path, target: Path, form: str) -> None:
    checkpoint = open_checkpoint(source)
    print("begun", flush=True)
    match form:
        case "mlx":
            write_mlx(checkpoint, target, transform=four_bits)
        case "huggingface":
            write_huggingface(checkpoint, target, dtype="float16")
        case "gguf":
            write_gguf(checkpoint, target, kind="Q8_0")


if __name__ == "__main__":
    try:
        convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
    except PartitaError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
