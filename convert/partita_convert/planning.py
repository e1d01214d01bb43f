"""What a conversion is asked to do, what of that can be refused at once, and how many bytes it will write.

Not here: doing it (`convert.py`). Invariant: nothing here reads a tensor.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from partita.adapters.read import Adapter
from partita.backend import Backend
from partita.checkpoint.base import Checkpoint
from partita.errors import DataError, UnsupportedModel
from partita.files.atomic import refuse_unwritable
from partita.model.load import check_whole, packed_as
from partita.quantization import AFFINE, SMALL_FLOATS
from partita.units import disk_size

from .adapters import Policy
from .gguf.encode import WEIGHED
from .gguf.mixes import ALIASES, MIXES
from .gguf.spent import mix_of
from .gguf.write import KINDS
from .recipes import Format, Recipe, is_embedding, parse_recipe, quantizable
from .servers import FORM as SERVERS
from .servers import parse as parse_for_servers
from .write_folder import DTYPES, is_packed

FORMS = ("mlx", "huggingface", "gguf", SERVERS)
_BITS_OF_KIND = {"F32": 32, "F16": 16, "BF16": 16, "Q8_0": 8.5, "Q5_1": 6, "Q5_0": 5.5, "Q4_1": 5, "Q4_0": 4.5}
_BITS_OF_MIX = {"Q2_K": 4.5, "Q3_K": 5.5, "Q4_K": 6.5625, "Q5_K": 6.5625, "Q6_K": 6.5625}
"""Of the widest type that a mixture of most matrices in this one has for a layer. Rows of other sizes: 8.5 at most."""
_KIND_OF_BITS = {"8": "Q8_0", "6": "Q6_K", "5": "Q5_1", "4": "Q4_1", "3": "Q3_K_M", "2": "Q2_K"}
_KIND_OF_STORED = {"F32": "F32", "F16": "F16", "BF16": "BF16", "F64": "F32"}
_BITS_OF_DTYPE = {"float32": 32, "float16": 16, "bfloat16": 16}
_BITS_OF_STORED = {
    "F64": 64,
    "F16": 16,
    "BF16": 16,
    "F8_E4M3": 16,
    "F8_E5M2": 16,
    **{mode.upper(): 16 for mode in SMALL_FLOATS},
}  # others: 32, once they are read
_BESIDE = 64 << 20  # tokenizer and headers, for the space that a conversion asks for
Progress = Callable[[str, int, int], None]
"""Called with (what is done, how much of it, of how much)."""
WRITING = "writing"
"""The work that is counted in bytes of the source."""


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
    stored. exact: keep float32 scales. policy: what becomes of an adapter's change that few bits would lose. imatrix: a
    file that says what columns are multiplied by, in place of a calibration; save_imatrix: where to keep that."""

    to: str = "mlx"
    quantize: str | None = None
    dtype: str | None = None
    exact: bool = False
    adapter: Adapter | None = None
    policy: Policy = "raise"
    calibration: Calibration | None = None
    imatrix: Path | None = None
    save_imatrix: Path | None = None

    @property
    def recipe(self) -> Recipe | None:
        """The recipe for an `mlx` folder. DataError for what is none."""
        return None if self.quantize is None or self.to != "mlx" else parse_recipe(self.quantize)

    @property
    def measured(self) -> Recipe | None:
        """The recipe with a budget to be spent, for a folder or a GGUF file. DataError for what is none."""
        recipe = gguf_recipe(self.quantize) if self.to == "gguf" else self.recipe
        return recipe if recipe is not None and recipe.budget is not None else None

    @property
    def runs_the_model(self) -> bool:
        """Whether there is no doing it without a calibration."""
        return self.measured is not None

    @property
    def searches(self) -> bool:
        """Whether scales are searched for, so that a calibration helps."""
        if self.to == "gguf":
            return gguf_kind(self.quantize) in (*WEIGHED, *MIXES)
        return self.recipe is not None or self.to == SERVERS


def check(source: Checkpoint, place: Path, request: Request) -> None:
    """Refuse what can be refused before a tensor is read: DataError, or CheckpointError where the source lacks a tensor
    or has one of another shape than its config says. In one line."""
    check_options(place, request)
    for written in (place, request.save_imatrix):
        if written is not None:
            check_outside(source.path, written)
    with suppress(UnsupportedModel):  # what cannot be run here can be copied, and not be judged
        check_whole(source)


def check_outside(source: Path, place: Path) -> None:
    """DataError if `place` lies in a source that is a folder."""
    above = place.absolute().parent.resolve()
    if source.is_dir() and source.resolve() in (above, *above.parents):
        raise DataError(f"{place} lies inside {source}, which a conversion leaves as it is: name another place")


def check_options(place: Path, request: Request) -> None:
    """The same without a source, so before one is fetched."""
    if request.to not in FORMS:
        raise DataError(f"unknown `to` {request.to!r}; expected one of {', '.join(FORMS)}", field="to")
    refuse_unwritable(place)
    if (request.to == "gguf") != (place.suffix == ".gguf"):
        wanted = "a file that ends in .gguf" if request.to == "gguf" else "a folder, or say `to` gguf"
        raise DataError(f"{place}: `to` {request.to} writes {wanted}", field="to")
    if request.to == "huggingface" and request.quantize is not None:
        raise DataError(
            "`quantize`: transformers reads dense weights only; leave it out, or say `to` mlx or gguf", field="quantize"
        )
    if request.to == SERVERS:
        if request.quantize is None:
            raise DataError(f"`to` {SERVERS} writes integers: say `quantize` 4, 8 or 4:GROUP", field="quantize")
        parse_for_servers(request.quantize)
    if request.to == "gguf" and request.dtype is not None:
        raise DataError(f"`dtype`: a GGUF file's type is `quantize`, one of {', '.join(KINDS)}", field="dtype")
    if request.dtype is not None and request.dtype not in DTYPES:
        raise DataError(f"unknown `dtype` {request.dtype!r}; expected one of {', '.join(DTYPES)}", field="dtype")
    if request.exact and request.to != "mlx":
        raise DataError("`exact` is about the scales of an mlx folder: leave it out", field="exact")
    if request.policy != "raise" and request.adapter is None:
        raise DataError(
            f"`adapter_loss` {request.policy}: there is no `adapter`; name one, or leave it out", field="adapter_loss"
        )
    if request.to == "mlx" and (request.quantize or "").upper() in (*KINDS, *ALIASES):
        raise DataError(
            f"`quantize` {request.quantize} is a GGUF type: say `to` gguf, or give bits such as 4 or 4:32",
            field="quantize",
        )
    gguf_kind(request.quantize) if request.to == "gguf" else request.recipe  # each refuses what it does not know
    _check_imatrix(place, request)


def _check_imatrix(place: Path, request: Request) -> None:
    for field, path in (("imatrix", request.imatrix), ("save_imatrix", request.save_imatrix)):
        if path is not None and (request.to != "gguf" or not request.searches):
            raise DataError(
                f"`{field}` is only for a GGUF file that is quantized: give `to` gguf and `quantize` such as Q4_K_M, "
                "or leave it out",
                field=field,
            )
    if request.imatrix is not None and request.save_imatrix is not None:
        raise DataError("`save_imatrix` keeps what is measured, and `imatrix` measures nothing: leave one out")
    if request.save_imatrix is not None:
        if request.save_imatrix.absolute() == place.absolute():
            raise DataError("`save_imatrix` names the place of the model: give it another name", field="save_imatrix")
        refuse_unwritable(request.save_imatrix)


def gguf_kind(wanted: str | None) -> str | None:
    """The type that `quantize` names, of a budget the mixture of about that size; None where it is left out. DataError
    for an unknown one."""
    if wanted is None:
        return None
    if (recipe := gguf_recipe(wanted)) is not None:
        return mix_of(recipe.budget or 0)
    kind = _KIND_OF_BITS.get(wanted, wanted.upper())
    kind = ALIASES.get(kind, kind)
    if kind not in KINDS:
        raise DataError(
            f"unknown `quantize` {wanted!r} for a GGUF file; expected one of {', '.join(KINDS)}, "
            f"{', '.join(_KIND_OF_BITS)} for a type of so many bits, or measured:BPW such as measured:4.5",
            field="quantize",
        )
    return kind


def gguf_recipe(wanted: str | None) -> Recipe | None:
    """Of a budget for a GGUF file; None for anything else. DataError for a budget that is none."""
    if wanted is None or not wanted.lower().startswith("measured"):
        return None
    if wanted.count(":") > 1:
        raise DataError(
            f"`quantize` {wanted!r}: GGUF's types have groups of their own: leave the size out", field="quantize"
        )
    return parse_recipe(wanted)


def gguf_types(source: Checkpoint, wanted: str | None) -> tuple[str, dict[str, str]]:
    """(type of matrices, types of single ones) of a GGUF file. Without a wish dense tensors keep their own type, and
    packed ones the type that holds their integers, or Q8_0."""
    if (asked := gguf_kind(wanted)) is not None:
        return asked, {}
    own = {name: kind for name in source.names() if (kind := _KIND_OF_STORED.get(source.stored_as(name))) is not None}
    if is_packed(source):
        return "Q8_0", own
    sizes: dict[str, int] = {}
    for name, kind in own.items():
        sizes[kind] = sizes.get(kind, 0) + math.prod(source.shape(name))
    return max(sizes, key=lambda kind: sizes[kind], default="F16"), own


# ---------------------------------------------------------------- bytes


def predicted_bytes(
    request: Request, source: Checkpoint, chosen: Mapping[str, Format] | None, kinds: Mapping[str, str], kind: str
) -> int:
    """What the tensors will take, rather too much than too little. chosen: formats; None: measured later, within the
    recipe's budget. kinds, kind: types of a GGUF file."""
    budget = request.measured.budget if request.measured is not None else None
    measured = quantizable(source) if chosen is None else {}
    dense = dense_dtype(source, request.dtype) if request.to == "huggingface" else request.dtype
    total = 0.0
    for name in source.names():
        shape = source.shape(name)
        if request.to == "gguf" and budget is not None and len(shape) > 1:
            bits = budget
        elif request.to == "gguf":
            bits = _gguf_bits(name, shape, kinds.get(name, kind))
        elif name in measured and budget is not None:
            bits = budget
        elif chosen and name in chosen:
            bits = chosen[name].bits_per_weight
        else:
            bits = kept_bits(source.stored_as(name), dense, request)
        total += bits / 8 * math.prod(shape)
    return math.ceil(total)


def _gguf_bits(name: str, shape: tuple[int, ...], kind: str) -> float:
    if len(shape) < 2:
        return 32
    bits = _BITS_OF_KIND.get(kind) or (8.5 if shape[-1] % 256 else _BITS_OF_MIX[MIXES[kind][0]])
    return max(bits, 8.5) if is_embedding(name) else bits


def stored_format(stored: str) -> Format | None:
    """The packed format that `Checkpoint.stored_as` names; None for a dense tensor."""
    packed = packed_as(stored)
    if packed is None:
        return None
    mode, bits, group_size = packed
    return Format(bits, group_size, mode)


def kept_bits(stored: str, dense: str | None, request: Request) -> float:
    """Bits a weight, scales included, of a tensor that is written as it is stored or, if it is dense, as `dense`."""
    own = stored_format(stored) if request.to == "mlx" else None
    if own is not None:
        if own.mode != AFFINE:
            return own.bits_per_weight
        wide = request.exact or "-bit:" in stored
        return own.bits + (64 if wide else 32) / own.group_size
    return _BITS_OF_DTYPE[dense] if dense is not None else _BITS_OF_STORED.get(stored, 32)


def dense_dtype(source: Checkpoint, dtype: str | None) -> str | None:
    return "float32" if dtype is None and is_packed(source) else dtype


def require_space(place: Path, needed: int) -> None:
    """DataError, with both numbers, where the disk has less than `needed` bytes left."""
    above = place.absolute().parent
    while not above.exists():
        above = above.parent
    free = shutil.disk_usage(above).free
    if needed + _BESIDE > free:
        raise DataError(
            f"{place}: about {disk_size(needed + _BESIDE)} are needed there, {disk_size(free)} are free: make "
            "room, or name another disk"
        )


def folder_bytes(folder: Path) -> int:
    """Of all files in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
