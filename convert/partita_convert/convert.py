"""One checkpoint in another layout: judge the request, choose formats, write.

Not here: sources by name and texts (`conversion.py`), rounding (`quantize.py`), which weight gets how many bits
(`recipes.py`, `measure.py`), files (`write_folder.py`, `gguf/write.py`).
Invariants: everything that can be refused is refused before the first byte is written; what is packed already keeps its
integers unless other bits are asked for; the source is only read; the same conversion writes the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from partita.checkpoint.base import Checkpoint
from partita.checkpoint.names import chooses
from partita.errors import DataError
from partita.model.decoder import Decoder
from partita.model.load import load_decoder
from partita.quantization import AFFINE, Packed
from partita.text.load import load_tokenizer

from . import servers
from .activations import TOKENS, Importance, importance
from .calibration import SAMPLE, written_tokens
from .fusing import Fusion, gguf_kinds
from .gguf.imatrix import read_imatrix, write_imatrix
from .gguf.spent import Types
from .gguf.write import WrittenFile, contents, plan_of, write_gguf
from .layouts import as_huggingface, as_mlx
from .measure import Groups, Part, W, Widths, allocate, check_budget, measure
from .planning import (
    WRITING,
    Progress,
    Request,
    check,
    folder_bytes,
    gguf_types,
    kept_bits,
    predicted_bytes,
    require_space,
    stored_format,
)
from .quantize import quantize
from .recipes import Format, Recipe, formats, quantizable
from .report import Report, why_raised
from .servers import FORM as SERVERS
from .write_folder import (
    Card,
    Value,
    WrittenFolder,
    cast,
    is_floating,
    numpy_dtype,
    write_huggingface,
    write_laid_out,
    write_mlx,
)


def convert(
    source: Checkpoint,
    place: Path,
    request: Request,
    *,
    on_progress: Progress = lambda what, done, total: None,
    card: Card | None = None,
) -> Report:
    """Write `source` at `place`, a folder or a `.gguf` file. on_progress: of one kind of work after another.

    DataError: a request that makes no sense, too little space, a place that exists or cannot be written.
    UnsupportedModel: what the form cannot say. CheckpointError: a damaged source.
    """
    check(source, place, request)
    if request.runs_the_model and request.calibration is None:
        raise DataError(f"`quantize` {request.quantize}: measuring needs a `calibration` text", field="calibration")
    base, on_bytes = laid_out(source, request.to), _steps(on_progress, WRITING)
    fusion = Fusion(base, request.adapter, request.policy)
    changed, own_card = fusion.changed, _described(card, fusion)
    if request.to == "gguf":
        written = _write_gguf(fusion, place, request, on_progress)
    elif request.to == "huggingface":
        require_space(place, predicted_bytes(request, base, {}, {}, ""))
        written = write_huggingface(changed, place, dtype=request.dtype, on_bytes=on_bytes, card=own_card)
        fusion.note_dense(written.tensors)
    elif request.to == SERVERS:
        written = _write_for_servers(fusion, place, request, own_card, on_progress)
    else:
        plain = None if request.runs_the_model else _plain_formats(changed, request)
        require_space(place, predicted_bytes(request, base, plain, {}, ""))
        chosen, columns = _formats(changed, request, plain, on_progress)
        transform = _Transform(request, fusion, chosen, columns)
        written = write_mlx(changed, place, transform=transform, on_bytes=on_bytes, card=own_card)
    nbytes = written.nbytes if not isinstance(written, WrittenFolder) else folder_bytes(place)
    return Report(
        place,
        request.to,
        source.nbytes(),
        nbytes,
        fusion.described(written.tensors),
        request.quantize,
        None if request.calibration is None else request.calibration.name,
        dict(fusion.retained),
        dict(fusion.raised),
    )


def _described(card: Card | None, fusion: Fusion) -> Card | None:
    """The card of what the source has, with the line on weights that got more bits for an adapter."""
    if card is None:
        return None

    def text(written: WrittenFolder) -> str:
        why = why_raised(fusion.raised, written.tensors, len(fusion.retained))
        return card(replace(written, tensors=fusion.described(written.tensors))) + (f"\n{why}.\n" if why else "")

    return text


def laid_out(source: Checkpoint, to: str) -> Checkpoint:
    """The source in the names of a form, which an adapter's are looked up among."""
    forms = {"mlx": as_mlx, "huggingface": as_huggingface, SERVERS: as_huggingface}
    return source if to == "gguf" else forms[to](source)


def _write_gguf(fusion: Fusion, place: Path, request: Request, on_progress: Progress) -> WrittenFile:
    kind, kinds = gguf_types(fusion.base, request.quantize)
    contents(fusion.changed, kind)  # refuses what GGUF cannot say, before the model is run
    require_space(place, predicted_bytes(request, fusion.base, {}, kinds, kind))
    if (recipe := request.measured) is not None:
        own, columns = _spent(fusion.changed, request, recipe, on_progress)
        kinds = {**kinds, **own}
    else:
        columns: Importance = _gguf_columns(fusion.changed, request, on_progress) if request.searches else {}
    as_stored = request.quantize is None
    kinds = {**kinds, **gguf_kinds(fusion, kind, kinds, as_stored=as_stored)}
    return write_gguf(
        *(fusion.changed, place),
        kind=kind,
        kinds=kinds,
        columns=columns,
        as_stored=as_stored,
        on_bytes=_steps(on_progress, WRITING),
    )


def _gguf_columns(source: Checkpoint, request: Request, on_progress: Progress) -> Importance:
    """From the file that was given, or measured and, where that was asked for, kept."""
    if request.imatrix is not None:
        return read_imatrix(request.imatrix, plan_of(source))
    # an mlx folder of gpt-oss calls its stacks otherwise than `write_gguf` calls all
    columns = {_in_plan(name): value for name, value in _columns(as_mlx(source), request, on_progress).items()}
    if request.save_imatrix is not None:
        if not columns:
            raise DataError(
                "`save_imatrix`: nothing is measured without a `calibration`: leave it out", field="save_imatrix"
            )
        write_imatrix(request.save_imatrix, plan_of(source), columns, TOKENS)
    return columns


def _in_plan(name: str) -> str:
    return name.replace(".mlp.experts.", ".mlp.switch_mlp.")


def _write_for_servers(
    fusion: Fusion,
    place: Path,
    request: Request,
    card: Card | None,
    on_progress: Progress,
) -> WrittenFolder:
    dtype = servers.dense_dtype(fusion.base, request.dtype)
    chosen = servers.formats(fusion.base, servers.parse(request.quantize or ""))
    columns = _columns(fusion.changed, request, on_progress)
    wide = servers.kept_wide(fusion, chosen, servers.ServerTransform(fusion, chosen, columns, dtype).integers)
    chosen = {name: wanted for name, wanted in chosen.items() if name not in wide}
    require_space(place, predicted_bytes(replace(request, dtype=dtype), fusion.base, chosen, {}, ""))
    transform = servers.ServerTransform(fusion, chosen, columns, dtype)
    layout = servers.layout(chosen)
    on_bytes = _steps(on_progress, WRITING)
    return write_laid_out(fusion.changed, place, layout, transform=transform, on_bytes=on_bytes, card=card)


def _plain_formats(source: Checkpoint, request: Request) -> dict[str, Format]:
    """The formats that a recipe without measuring gives, but for weights that have so many bits already."""
    recipe = request.recipe
    if recipe is None:
        return {}
    chosen = formats(recipe, quantizable(source))
    return {name: wanted for name, wanted in chosen.items() if not _is_kept(recipe, source.stored_as(name), wanted)}


def _is_kept(recipe: Recipe, stored: str, wanted: Format) -> bool:
    """Whether integers stay as they are: as many bits as wanted, in groups of that size if a size was named."""
    own = stored_format(stored)
    return own is not None and own.bits == wanted.bits and (own == wanted or not recipe.names_group)


def _columns(source: Checkpoint, request: Request, on_progress: Progress) -> Importance:
    """What the columns of each weight are multiplied by, on the text that was given or ours."""
    if request.calibration is None:
        return {}
    ops, tokens = request.calibration.ops, request.calibration.tokens
    if tokens is None:
        tokens = load_tokenizer(source).encode(SAMPLE)
    found = importance(ops.rough, source, tokens, _steps(on_progress, "reading the calibration text"))
    whole = all(np.isfinite(columns).all() for columns in found.values())
    return found if whole else {}  # numbers that are not finite are in the weights too, and are reported by name


def _steps(on_progress: Progress, what: str) -> Callable[[int, int], None]:
    return lambda done, total: on_progress(what, done, total)


def _formats(
    source: Checkpoint, request: Request, plain: dict[str, Format] | None, on_progress: Progress
) -> tuple[Mapping[str, Format], Importance]:
    """Format of every weight that is to be quantized, and the importance of the columns of those that have one."""
    recipe, calibration = request.recipe, request.calibration
    if plain is not None or recipe is None or calibration is None:
        return plain or {}, _columns(source, request, on_progress) if plain else {}
    weights = quantizable(source)
    others = {name: source.shape(name) for name in source.names() if name not in weights}
    other_bits = round(
        sum(kept_bits(source.stored_as(name), request.dtype, request) * math.prod(others[name]) for name in others)
    )
    widths = Groups(recipe.group_size)
    check_budget(weights, recipe, other_bits, widths)
    decoder, request = _ready(source, request, on_progress)
    columns = _columns(source, request, on_progress)
    parts = _parts(source, decoder, request, weights, widths, columns, on_progress)
    return allocate(parts, weights, recipe, other_bits, widths), columns


def _ready(source: Checkpoint, request: Request, on_progress: Progress) -> tuple[Decoder, Request]:
    """The model, and the request with the tokens to measure on."""
    assert request.calibration is not None
    ops, tokens = request.calibration.ops, request.calibration.tokens
    decoder = load_decoder(ops, source, on_layer=_steps(on_progress, "loading the model"))
    if tokens is None:
        steps = _steps(on_progress, "writing a calibration text")
        tokens = written_tokens(ops, decoder, load_tokenizer(source), steps)
    return decoder, replace(request, calibration=replace(request.calibration, tokens=tokens))


def _parts(
    source: Checkpoint,
    decoder: Decoder,
    request: Request,
    weights: Mapping[str, tuple[int, ...]],
    widths: Widths[W, object],
    columns: Importance,
    on_progress: Progress,
) -> list[Part[W]]:
    assert request.calibration is not None
    ops, tokens = request.calibration.ops, request.calibration.tokens or ()
    return measure(ops, source, decoder, weights, tokens, widths, columns, _steps(on_progress, "measuring"))


def _spent(
    source: Checkpoint, request: Request, recipe: Recipe, on_progress: Progress
) -> tuple[dict[str, str], Importance]:
    """Type of every weight of a GGUF file with a budget, and the importance of columns, by the names of its plan."""
    base, widths = as_mlx(source), Types()
    weights = quantizable(base)
    other_bits = 32 * sum(math.prod(base.shape(name)) for name in base.names() if name not in weights)
    check_budget(weights, recipe, other_bits, widths)
    decoder, request = _ready(base, request, on_progress)
    columns = _gguf_columns(source, request, on_progress)
    own = {name: columns[_in_plan(name)] for name in weights if _in_plan(name) in columns}
    parts = _parts(base, decoder, request, weights, widths, own, on_progress)
    chosen = allocate(parts, weights, recipe, other_bits, widths)
    return {_in_plan(name): kind for name, kind in chosen.items()}, columns


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
                return self._dense(name, self.fusion.quantized(name, wanted, self._quantize(name)))
        elif wanted is not None and not _is_already(value, wanted):
            return self._quantize(name)(value, wanted.bits, wanted.group_size, mode=wanted.mode)
        kept = self._kept(name, value)
        if self.fusion.changes(name):
            self.fusion.note(name, kept)
        return kept

    def _quantize(self, name: str) -> Callable[..., Packed]:
        return partial(quantize, importance=self.columns.get(name), name=name)

    def _kept(self, name: str, value: Value) -> Value:
        """What is not quantized: dense in the dtype asked for; a GGUF file's scales in 16 bits, unless exact."""
        if isinstance(value, Packed):
            is_gguf = self.fusion.base.metadata is not None
            return _with_half_scales(value) if is_gguf and not self.request.exact else value
        return self._dense(name, value)

    def _dense(self, name: str, value: Value) -> Value:
        if isinstance(value, Packed) or not is_floating(value) or chooses(name):
            return value
        dtype = np.dtype(np.float32) if self.dtype is None and value.dtype == np.float64 else self.dtype
        return value if dtype is None else cast(name, value, dtype)  # MLX computes in float64 on a CPU alone


def _is_already(value: Value, wanted: Format) -> bool:
    return isinstance(value, Packed) and value.format[:3] == (wanted.mode, wanted.bits, wanted.group_size)


def _with_half_scales(value: Packed) -> Packed:
    """A K-quant's scales and biases in float16, unless one is too large or too small for it."""
    if value.mode != AFFINE:
        return value
    with np.errstate(over="ignore"):
        scales, biases = (part.astype(np.float16) for part in value.grid)
    lost = any(
        (~np.isfinite(half)).any() or ((half == 0) & (own != 0)).any()
        for half, own in zip((scales, biases), value.grid, strict=True)
    )
    return value if lost else replace(value, scales=scales, biases=biases)
