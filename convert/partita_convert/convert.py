"""One conversion from beginning to end: judge it, choose formats, write. What the command and its tests call.

Not here: rounding (`quantize.py`), which weight gets how many bits (`recipes.py`, `measure.py`), files (`write_*.py`).
Invariants: everything that can be refused is refused before the first byte is written; what is packed already keeps its
integers unless other bits are asked for; the source is only read; the same conversion writes the same bytes.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from partita.adapters import Adapter, fused
from partita.backend import Backend
from partita.checkpoint import Checkpoint
from partita.errors import DataError
from partita.loading import load_decoder
from partita.quantization import Packed

from .activations import Importance, importance
from .adapters import Policy
from .atomic import refuse_existing
from .calibration import SAMPLE, written_tokens
from .fusing import Fusion, gguf_kinds
from .layouts import as_huggingface, as_mlx
from .measure import allocate, measure
from .quantize import quantize
from .recipes import Format, Recipe, formats, parse_recipe, quantizable
from .report import Report
from .write_folder import (
    Card,
    OnTensor,
    Value,
    WrittenFolder,
    cast,
    is_floating,
    is_packed,
    numpy_dtype,
    write_huggingface,
    write_mlx,
)
from .write_gguf import KINDS, write_gguf

FORMS = ("mlx", "huggingface", "gguf")
_BITS_OF_KIND = {"F32": 32, "F16": 16, "BF16": 16, "Q8_0": 8.5, "Q5_1": 6, "Q5_0": 5.5, "Q4_1": 5, "Q4_0": 4.5}
_KIND_OF_BITS = {"8": "Q8_0", "5": "Q5_1", "4": "Q4_1"}
_KIND_OF_STORED = {"F32": "F32", "F16": "F16", "BF16": "BF16"}
_ITEMSIZE = {"F32": 4, "F16": 2, "BF16": 2, "float32": 4, "float16": 2, "bfloat16": 2}
_BESIDE = 64 << 20  # tokenizer and headers, for the space that a conversion asks for
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Calibration:
    """What runs the model while weights are judged: a backend, and the ids of a text that the model is meant for.

    tokens None: a short text of ours, or where bits are measured one that the model writes. name: for the report.
    """

    ops: Backend
    tokens: Sequence[int] | None
    name: str


@dataclass(frozen=True)
class Request:
    """to: of FORMS. quantize: a recipe, or one of GGUF's types; None: as stored. dtype: of what stays dense; None: as
    stored. exact: keep float32 scales. policy: what becomes of an adapter's change that few bits would lose."""

    to: str = "mlx"
    quantize: str | None = None
    dtype: str | None = None
    exact: bool = False
    adapter: Adapter | None = None
    policy: Policy = "raise"
    calibration: Calibration | None = None

    @property
    def recipe(self) -> Recipe | None:
        """The recipe for an `mlx` folder. DataError for what is none."""
        return None if self.quantize is None or self.to != "mlx" else parse_recipe(self.quantize)

    @property
    def runs_the_model(self) -> bool:
        """Whether a calibration is needed."""
        return self.recipe is not None and self.recipe.budget is not None


def convert(
    source: Checkpoint,
    place: Path,
    request: Request,
    *,
    on_tensor: OnTensor | None = None,
    on_progress: Progress = lambda what, done, total: None,
    card: Card | None = None,
) -> Report:
    """Write `source` at `place`, a folder or a `.gguf` file. on_progress(what, done, total): of what comes before.

    DataError: a request that makes no sense, too little space, a place that exists or cannot be written.
    UnsupportedModel: what the form cannot say. CheckpointError: a damaged source.
    """
    check(source, place, request)
    base = _laid_out(source, request.to)
    changed = base if request.adapter is None else fused(base, request.adapter)
    fusion = Fusion(base, changed, request.policy)
    if request.to == "gguf":
        kind, kinds = gguf_types(base, request.quantize)
        require_space(place, predicted_bytes(base, {}, kind=kind))
        kinds = {**kinds, **gguf_kinds(fusion, kind, kinds)}
        written = write_gguf(changed, place, kind=kind, kinds=kinds, on_tensor=on_tensor)
    elif request.to == "huggingface":
        require_space(place, predicted_bytes(base, {}, dtype=_dense_dtype(base, request.dtype)))
        written = write_huggingface(changed, place, dtype=request.dtype, on_tensor=on_tensor, card=card)
        fusion.note_dense(written.tensors)
    else:
        chosen, columns = _formats(changed, request, on_progress)
        require_space(place, predicted_bytes(base, chosen, dtype=request.dtype))
        transform = _Transform(request, fusion, chosen, columns)
        written = write_mlx(changed, place, transform=transform, on_tensor=on_tensor, card=card)
    nbytes = written.nbytes if not isinstance(written, WrittenFolder) else folder_bytes(place)
    return Report(
        place,
        request.to,
        source_bytes(source.path),
        nbytes,
        written.tensors,
        request.quantize,
        None if request.calibration is None else request.calibration.name,
        dict(fusion.retained),
    )


def check(source: Checkpoint, place: Path, request: Request) -> None:
    """Refuse what can be refused before anything is read. DataError, in one line."""
    if request.to not in FORMS:
        raise DataError(f"--to {request.to!r}: give {', '.join(FORMS)}")
    refuse_existing(place)
    target, origin = place.absolute(), source.path.absolute()
    if origin.is_dir() and origin.resolve() in (target.parent.resolve(), *target.parent.resolve().parents):
        raise DataError(f"{place} lies inside {source.path}, which a conversion leaves as it is: name another place")
    if (request.to == "gguf") != (place.suffix == ".gguf"):
        wanted = "a file that ends in .gguf" if request.to == "gguf" else "a folder, or say --to gguf"
        raise DataError(f"{place}: --to {request.to} writes {wanted}")
    if request.to == "huggingface" and request.quantize is not None:
        raise DataError("--quantize: transformers reads dense weights only; leave it out, or say --to mlx or --to gguf")
    if request.to == "gguf" and request.dtype is not None:
        raise DataError(f"--dtype: a GGUF file's type is --quantize, one of {', '.join(KINDS)}")
    if request.exact and request.to != "mlx":
        raise DataError("--exact is about the scales of an mlx folder: leave it out")
    if request.runs_the_model and request.calibration is None:
        raise DataError(f"--quantize {request.quantize}: measuring needs a calibration text")


def _laid_out(source: Checkpoint, to: str) -> Checkpoint:
    return {"mlx": as_mlx, "huggingface": as_huggingface, "gguf": lambda checkpoint: checkpoint}[to](source)


# ---------------------------------------------------------------- formats


def gguf_types(source: Checkpoint, wanted: str | None) -> tuple[str, dict[str, str]]:
    """(type of matrices, types of single ones) of a GGUF file. Without a wish dense tensors keep their own type, and
    packed ones the type that holds their integers, or Q8_0."""
    if wanted is not None:
        kind = _KIND_OF_BITS.get(wanted, wanted.upper())
        if kind not in KINDS:
            raise DataError(
                f"--quantize {wanted!r}: a GGUF file takes {', '.join(KINDS)}, or {', '.join(_KIND_OF_BITS)} for a "
                "type of so many bits"
            )
        return kind, {}
    own = {name: kind for name in source.names() if (kind := _KIND_OF_STORED.get(source.stored_as(name))) is not None}
    if is_packed(source):
        return "Q8_0", own
    sizes: dict[str, int] = {}
    for name, kind in own.items():
        sizes[kind] = sizes.get(kind, 0) + math.prod(source.shape(name))
    return max(sizes, key=lambda kind: sizes[kind], default="F16"), own


def _formats(source: Checkpoint, request: Request, on_progress: Progress) -> tuple[dict[str, Format], Importance]:
    """Format of every weight that is to be quantized, and the importance of the columns of those that have one."""
    recipe, weights = request.recipe, quantizable(source)
    if recipe is None:
        return {}, {}
    chosen = {} if recipe.budget is not None else formats(recipe, weights)
    if request.calibration is None or (recipe.budget is None and not chosen):
        return chosen, {}
    ops, tokens = request.calibration.ops, request.calibration.tokens

    def tell(what: str) -> Callable[[int, int], None]:
        return lambda done, total: on_progress(what, done, total)

    if recipe.budget is None:
        if tokens is None:
            tokens = source.load_tokenizer().encode(SAMPLE)
        return chosen, importance(ops, source, tokens, tell("reading the calibration text"))
    decoder = load_decoder(ops, source, on_layer=tell("loading the model"))
    if tokens is None:
        tokens = written_tokens(ops, decoder, source.load_tokenizer(), tell("writing a calibration text"))
    columns = importance(ops, source, tokens, tell("reading the calibration text"))
    parts = measure(ops, source, decoder, weights, tokens, recipe.group_size, columns, tell("measuring"))
    others = [name for name in source.names() if name not in weights]
    other_bits = sum(8 * _dense_bytes(source, name, request.dtype) for name in others)
    return allocate(parts, weights, recipe, other_bits), columns


class _Transform:
    """What an mlx folder makes of each tensor."""

    def __init__(self, request: Request, fusion: Fusion, chosen: Mapping[str, Format], columns: Importance):
        self.request, self.fusion, self.chosen, self.columns = request, fusion, chosen, columns
        self.dtype = None if request.dtype is None else numpy_dtype(request.dtype)

    def __call__(self, name: str, value: Value) -> Value:
        wanted = self.chosen.get(name)
        if self.fusion.changes(name):
            wanted = wanted or self.fusion.packed_as(name)
            if wanted is not None:
                return self._settled(self.fusion.quantized(name, wanted, self._quantize(name)))
        elif wanted is not None and not _is_already(value, wanted):
            return self._quantize(name)(value, wanted.bits, wanted.group_size)
        settled = self._settled(value)
        if self.fusion.changes(name):
            self.fusion.note(name, settled)
        return settled

    def _quantize(self, name: str) -> Callable[..., Packed]:
        return lambda x, bits, group: quantize(x, bits, group, importance=self.columns.get(name), name=name)

    def _settled(self, value: Value) -> Value:
        """What is not quantized: dense in the dtype that was asked for, packed with scales of 16 bits unless exact."""
        if isinstance(value, Packed):
            return value if self.request.exact else _with_half_scales(value)
        return cast("a tensor", value, self.dtype) if self.dtype is not None and is_floating(value) else value


def _is_already(value: Value, wanted: Format) -> bool:
    return isinstance(value, Packed) and (value.bits, value.group_size) == (wanted.bits, wanted.group_size)


def _with_half_scales(value: Packed) -> Packed:
    """Scales and biases in float16, unless they are 16 bits wide already or too large for it."""
    if value.scales.dtype.itemsize == 2 and value.biases.dtype.itemsize == 2:
        return value
    largest = max(float(np.abs(part).max(initial=0)) for part in (value.scales, value.biases))
    if largest > np.finfo(np.float16).max:
        return value
    return replace(value, scales=value.scales.astype(np.float16), biases=value.biases.astype(np.float16))


# ---------------------------------------------------------------- bytes


def predicted_bytes(
    source: Checkpoint, chosen: Mapping[str, Format], *, kind: str | None = None, dtype: str | None = None
) -> int:
    """What the weights will take, to within a few per cent. kind: of a GGUF file's matrices."""
    total = 0.0
    for name in source.names():
        count = math.prod(source.shape(name))
        if kind is not None:
            total += count * _BITS_OF_KIND[kind] / 8
        elif name in chosen:
            total += count * chosen[name].bits_per_weight / 8
        else:
            total += _dense_bytes(source, name, dtype)
    return int(total)


def _dense_bytes(source: Checkpoint, name: str, dtype: str | None) -> int:
    """Of a tensor that stays as it is stored, or becomes `dtype`; packed ones by the bits in their type's name."""
    count, stored = math.prod(source.shape(name)), source.stored_as(name)
    if dtype is not None and (stored in _ITEMSIZE or dtype == "float32"):
        return count * _ITEMSIZE[dtype]
    if stored in _ITEMSIZE:
        return count * _ITEMSIZE[stored]
    digits = "".join(character for character in stored if character.isdigit())
    return count * (int(digits[0]) + 2) // 8 if digits else 4 * count


def _dense_dtype(source: Checkpoint, dtype: str | None) -> str | None:
    return "float32" if dtype is None and is_packed(source) else dtype


def require_space(place: Path, needed: int) -> None:
    """DataError, with both numbers, where the disk has less than `needed` bytes left."""
    above = place.absolute().parent
    while not above.exists():
        above = above.parent
    free = shutil.disk_usage(above).free
    if needed + _BESIDE > free:
        raise DataError(
            f"{place}: about {(needed + _BESIDE) / 1e9:.1f} GB are needed there, {free / 1e9:.1f} GB are free: make "
            "room, or name another disk"
        )


def folder_bytes(folder: Path) -> int:
    """Of all files in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def source_bytes(path: Path) -> int:
    """Of a file, or of the weights in a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(os.stat(file).st_size for pattern in ("*.safetensors", "*.bin") for file in path.glob(pattern))
