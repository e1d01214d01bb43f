"""How long a conversion takes, and what it holds in memory at most, beside a peer's: each in a process of its own.

Both read the same folder of bfloat16 weights, which is made of the model first, and not timed, where it is no such
folder. llama.cpp's converter is no part of its Python package: what is timed of it is its quantizer, and our writing of
the F16 file that it reads, which is said in the row. Threads are those that a program takes by itself.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .processes import Took, timed
from .report import row

PEERS = {"mlx": "mlx-lm", "gguf": "llama.cpp"}
MIB = 2**20
_QUANTIZER = """
import sys
import llama_cpp
source, target, kind = sys.argv[1:]
options = llama_cpp.llama_model_quantize_default_params()
options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
sys.exit(llama_cpp.llama_model_quantize(source.encode(), target.encode(), options))
"""


def run(
    *,
    model: Path,
    runs: int,
    to: str,
    quantize: str,
    calibration: str | None,
    against: bool,
    peer_python: str | None,
    threads: int | None,
    **backend: Any,
) -> list[dict[str, Any]]:
    ours = [sys.executable, "-m", "partita_apps.cli", "convert"]
    options = [f"--{name}={value}" for name, value in backend.items() if value not in (None, "auto")]
    options += [f"--threads={threads}"] if threads else []
    weighed = [] if calibration is None else ["--calibration", calibration]
    python = peer_python or sys.executable
    with tempfile.TemporaryDirectory(prefix="partita-bench-") as made:
        place = Path(made)
        if against and to == "mlx":
            _sizes(quantize)
        source = _dense(model, place, ours)
        out = place / ("out.gguf" if to == "gguf" else "out")
        command = [*ours, str(source), str(out), "--to", to, "--quantize", quantize, *weighed, *options]
        found: list[Took] = []
        theirs: list[Took] = []
        for _ in range(runs):
            found.append(timed(command, out))
            if against and to == "mlx":
                theirs.append(timed(_mlx_lm(python, source, out, quantize), out))
            elif against:
                between = place / "f16.gguf"
                first = timed([*ours, str(source), str(between), "--quantize", "F16"])
                second = timed([python, "-c", _QUANTIZER, str(between), str(out), _kind(quantize)], out)
                between.unlink()
                theirs.append(Took(first.seconds + second.seconds, max(first.peak, second.peak)))
    peer = f" / {PEERS[to]}{', its F16 file written by ours' if to == 'gguf' else ''}" if against else ""
    about = f"{to}, --quantize {quantize}{', --calibration ' + calibration if calibration else ''}{peer}"
    peak, other = _medians(found, theirs, "peak")
    return [
        row(about, *_medians(found, theirs, "seconds"), "s"),
        row(f"its peak resident, {about}", peak / MIB, other / MIB if other else None, "MiB"),
    ]


def _dense(model: Path, place: Path, ours: Sequence[str]) -> Path:
    """A folder of bfloat16 weights of the model."""
    from partita.checkpoint.open import open_checkpoint

    checkpoint = open_checkpoint(model)
    if model.is_dir() and {checkpoint.stored_as(name) for name in checkpoint.names()} <= {"BF16", "F32"}:
        return model
    timed([*ours, str(model), str(place / "dense"), "--to", "huggingface", "--dtype", "bfloat16"])
    return place / "dense"


def _mlx_lm(python: str, source: Path, out: Path, quantize: str) -> list[str]:
    paths = ["--hf-path", str(source), "--mlx-path", str(out)]
    return [python, "-m", "mlx_lm", "convert", *paths, "-q", *_sizes(quantize)]


def _sizes(quantize: str) -> list[str]:
    """Bits and groups as mlx-lm is told them."""
    from partita.errors import DataError

    bits, _, group = quantize.partition(":")
    if not bits.isdecimal():
        raise DataError(f"`quantize` {quantize!r}: mlx-lm is measured at BITS[:GROUP]", field="quantize")
    return ["--q-bits", bits, "--q-group-size", group or "64"]


def _kind(quantize: str) -> str:
    """A type of GGUF by the name that llama.cpp's constants have."""
    return {"4": "Q4_1", "5": "Q5_1", "8": "Q8_0"}.get(quantize, quantize)


def _medians(ours: Sequence[Took], theirs: Sequence[Took], what: str) -> tuple[float, float | None]:
    found = [statistics.median(getattr(each, what) for each in side) if side else None for side in (ours, theirs)]
    assert found[0] is not None
    return found[0], found[1]
