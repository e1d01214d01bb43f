"""Checkpoints out as one GGUF file, which llama.cpp and its kin load.

Not here: how a value becomes blocks (`encode`), what the keys say (`metadata`, `tokenizer`). Invariants: the file is
there whole or not at all; the source is never touched; the same source gives the same bytes; memory holds one tensor at
a time; what GGUF cannot say is refused before anything is written.

Types, by a tensor's role: norms, biases, routers, short convolutions and everything of one dimension are F32. Integers
that a block type holds exactly are kept, in that type, unless it has more bits than were asked for; K-quants of a GGUF
source keep their bytes. Otherwise a matrix becomes what was asked for, or what the mixture that was asked for has for
it (`mixes`), but: rows that a block does not divide become a type of smaller blocks or F16, numbers too large for F16
F32, and in a model of four or five bits without a mixture its head (the embedding, if it is the head too) Q8_0. The few
rows that say what a recurrent layer forgets are Q8_0 as well.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np

from partita.checkpoint import experts
from partita.checkpoint.base import Checkpoint, shares
from partita.checkpoint.gguf.architectures import Architecture
from partita.checkpoint.gguf.arrangement import arrangement, part_of, permuted_heads, rows_by_key_heads, with_columns
from partita.checkpoint.gguf.parts import BARE_NAMES, EXPERTS
from partita.checkpoint.names import EMBEDDING, HEAD, adds_one, part_beside_text, predicts_further, text_name
from partita.errors import CheckpointError, DataError, UnsupportedModel
from partita.files.atomic import refuse_existing, whole_file
from partita.model.config import ModelConfig
from partita.model.families.parse import parse
from partita.quantization import Packed, Stored, dequantize
from partita.sources.listener import OnPart, unheard

from ..layouts import by_key_heads
from ..moved import Moved
from ..renames import as_published, published_name
from ..write_folder import WrittenTensor
from .encode import K_WIDTHS, WIDTHS, Encoder, Value, exact_type, too_large
from .file import FILE_TYPE, GgufWriter, Typed
from .metadata import FILE_TYPES, architecture_of, check_said, general_keys, model_keys
from .mixes import ALIASES, MIXES, fitting, mixed_types
from .recurrent import head_fields, sections
from .tokenizer import tokenizer_keys

PLAIN = ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
KINDS = (*PLAIN, *MIXES)
TENSOR_KINDS = (*PLAIN, *K_WIDTHS)
"""Of a single tensor."""
_FLOATS = frozenset({"ffn_gate_inp", "ssm_conv1d", "shortconv.conv"})
_DELICATE = frozenset({"ssm_alpha", "ssm_beta", "ssm_ba"})
_FUSED = "linear_attn.in_proj_qkvz"


@dataclass(frozen=True)
class WrittenFile:
    path: Path
    nbytes: int  # of the whole file
    tensors: tuple[WrittenTensor, ...]


@dataclass(frozen=True)
class Planned:
    """One tensor to be written. name: in the source's words. order: of its rows. shift: added to its values. heads:
    the order of equal parts of its columns, in which `read` gives them. stored: its blocks, where the source is a GGUF
    file with K-quants whose rows are rows here. sources: what it is made of, where that is not `name`."""

    gguf_name: str
    name: str
    shape: tuple[int, ...]
    source: str
    read: Callable[[], Value]
    order: np.ndarray | None = None
    shift: float = 0.0
    heads: np.ndarray | None = None
    stored: Callable[[], Value | Stored] | None = None
    sources: Sequence[str] = ()


@dataclass(frozen=True)
class Contents:
    """What a file is to hold. planned: its tensors, in their order. sizes: bytes of the source behind each, by GGUF's
    names."""

    architecture: str
    config: ModelConfig
    keys: Mapping[str, Typed]
    planned: Sequence[Planned]
    sizes: Mapping[str, int]


def contents(checkpoint: Checkpoint, kind: str) -> Contents:
    """Of a file whose matrices are of `kind`; reads no weight.

    UnsupportedModel: what GGUF cannot say of this model or its tokenizer. CheckpointError: a damaged source.
    """
    architecture, row = architecture_of(checkpoint.config)
    config = parse(checkpoint.config)
    checkpoint = by_key_heads(as_published(checkpoint), ("ssm_ba",))  # where it was read from GGUF, two
    keys = general_keys(checkpoint, architecture, kind)
    model, factors = model_keys(config, architecture)
    keys |= model
    if (mrope := sections(checkpoint.config, row)) is not None:
        keys[f"{architecture}.rope.dimension_sections"] = Typed("i32", mrope, many=True)
    planned = [*_plan(checkpoint, config, row), *(_factor(name, value) for name, value in factors.items())]
    check_said(config, keys, {tensor.gguf_name: tensor.shape for tensor in planned}, factors)
    keys |= tokenizer_keys(checkpoint, config.vocab_size, keys)
    made_of = {tensor.gguf_name: tensor.sources or (tensor.name,) for tensor in planned}
    return Contents(architecture, config, keys, planned, shares(made_of, checkpoint.weight_bytes()))


def write_gguf(
    checkpoint: Checkpoint,
    path: Path,
    *,
    kind: str = "F16",
    kinds: Mapping[str, str] = MappingProxyType({}),
    columns: Mapping[str, np.ndarray] = MappingProxyType({}),
    as_stored: bool = False,
    on_bytes: OnPart = unheard,
) -> WrittenFile:
    """Write a GGUF file whose matrices are of `kind`, one of KINDS; of a model that sees as well, its text decoder.

    kinds: one of TENSOR_KINDS of its own for some tensors, by the checkpoint's names. columns: how much each column of
    a weight matters, for types whose scales are searched for. as_stored: `kind` was not asked for, so the file says of
    itself what a GGUF source does, or else what most of its matrices are.
    DataError: an unknown kind, `path` exists or cannot be written, numbers that are not finite; and the errors of
    `contents`.
    """
    path = Path(path)
    if unknown := ({kind} - set(KINDS)) | (set(kinds.values()) - set(TENSOR_KINDS)):
        raise DataError(f"GGUF type {unknown.pop()!r} is not written; these are: {', '.join(KINDS)}")
    refuse_existing(path)  # before the vocabulary is read
    file = contents(checkpoint, kind)
    kinds = {published_name(checkpoint, name): wanted for name, wanted in kinds.items()}
    columns = {published_name(checkpoint, name): matter for name, matter in columns.items()}
    written: list[WrittenTensor] = []
    with whole_file(path, replace=False) as temporary, open(temporary, "wb") as out:
        writer = GgufWriter(out, file.keys, [(tensor.gguf_name, tensor.shape) for tensor in file.planned])
        head, own = _head_name(file.planned), _kinds(kind, kinds, file)
        moved = Moved(file.sizes, on_bytes)
        for tensor in file.planned:
            importance = importance_in_file(tensor, columns)
            is_head = tensor.gguf_name == head and kind not in MIXES and own[tensor.gguf_name] == kind
            written.append(_write(writer, tensor, own[tensor.gguf_name], importance, is_head=is_head))
            moved(tensor.gguf_name)
        nbytes = writer.finish(_file_type(checkpoint, written) if as_stored else None)
    return WrittenFile(path, nbytes, tuple(written))


def _file_type(checkpoint: Checkpoint, written: Sequence[WrittenTensor]) -> int | None:
    """`general.file_type` of a file as stored: the source's where every matrix has kept its type, or else that of most
    matrices. None for a type without a number."""
    matrices = [tensor for tensor in written if len(tensor.shape) > 1]
    said = (checkpoint.metadata or {}).get(FILE_TYPE)
    if isinstance(said, int) and all(tensor.source == tensor.target for tensor in matrices):
        return said
    most = Counter(tensor.target for tensor in matrices).most_common(1)[0][0]
    return FILE_TYPES.get(ALIASES.get(most, most))


def _head_name(planned: Sequence[Planned]) -> str:
    names = {tensor.gguf_name for tensor in planned}
    return "output.weight" if "output.weight" in names else "token_embd.weight"


def _kinds(kind: str, kinds: Mapping[str, str], file: Contents) -> dict[str, str]:
    """GGUF's name to what is asked of each tensor, by itself, by the mixture or of all."""
    own = {tensor.gguf_name: kinds[tensor.name] for tensor in file.planned if tensor.name in kinds}
    names = [tensor.gguf_name for tensor in file.planned]
    if kind not in MIXES:
        return dict.fromkeys(names, kind) | own
    return dict.fromkeys(names, MIXES[kind][0]) | mixed_types(kind, file.config, file.architecture, names) | own


def plan_of(checkpoint: Checkpoint) -> tuple[Planned, ...]:
    """What a file of this checkpoint would hold, by the names that it has here."""
    _, row = architecture_of(checkpoint.config)
    planned = _plan(by_key_heads(as_published(checkpoint), ("ssm_ba",)), parse(checkpoint.config), row)
    own = {published_name(checkpoint, name): name for name in checkpoint.names()}
    return tuple(replace(tensor, name=own.get(tensor.name, tensor.name)) for tensor in planned)


def kinds_of_mix(checkpoint: Checkpoint, mix: str) -> dict[str, str]:
    """What a mixture has for each tensor, by the checkpoint's names, the first of those with the same one."""
    architecture, _ = architecture_of(checkpoint.config)
    planned = plan_of(checkpoint)
    chosen = mixed_types(mix, parse(checkpoint.config), architecture, (tensor.gguf_name for tensor in planned))
    return {tensor.name: chosen[tensor.gguf_name] for tensor in reversed(planned) if tensor.gguf_name in chosen}


def importance_in_file(tensor: Planned, columns: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Of a tensor's columns, in the file's order."""
    found = columns.get(tensor.name)
    if found is not None and tensor.heads is not None:
        return found.reshape(len(tensor.heads), -1)[tensor.heads].reshape(-1)
    return found


def _write(
    writer: GgufWriter, tensor: Planned, kind: str, importance: np.ndarray | None, *, is_head: bool
) -> WrittenTensor:
    value = _kept(tensor, kind)
    if value is None:
        value = tensor.read()
        if tuple(value.shape) != tensor.shape:
            raise CheckpointError(f"{tensor.name} has shape {tuple(value.shape)}, {tensor.shape} was announced")
    type_name = value.type if isinstance(value, Stored) else _type(tensor, value, kind, is_head)
    encoder = Encoder(tensor.name, value, type_name, tensor.order, tensor.shift, importance)
    nbytes = writer.write(encoder.type_name, encoder.blocks())
    return WrittenTensor(tensor.name, tensor.shape, tensor.source, encoder.type_name, nbytes, encoder.error)


def _kept(tensor: Planned, kind: str) -> Stored | None:
    """A K-quant's blocks, where they have no more bits than were asked for."""
    if tensor.stored is None or kind not in WIDTHS or WIDTHS[tensor.source] > WIDTHS[kind]:
        return None
    found = tensor.stored()
    if not isinstance(found, Stored) or found.type != tensor.source or len(found.parts) != 1:
        return None
    return found if found.shape == (math.prod(tensor.shape[:-1]), tensor.shape[-1]) else None


def _type(tensor: Planned, value: Value, kind: str, is_head: bool) -> str:
    """The type of one tensor: see the module's first lines."""
    part = part_of(tensor.gguf_name)
    if len(tensor.shape) == 1 or tensor.gguf_name.endswith(".bias") or part in _FLOATS:
        return "F32"
    is_head = is_head or part in _DELICATE
    exact = exact_type(value) if kind in WIDTHS and isinstance(value, Packed) else None
    if exact and WIDTHS[exact] <= WIDTHS[kind]:
        return exact
    if exact and is_head and WIDTHS[kind] < 8:
        return exact
    kind = dense_type(kind, tensor.shape[-1], is_head=is_head)
    return "F32" if kind == "F16" and too_large(value) else kind


def dense_type(kind: str, columns: int, *, is_head: bool) -> str:
    """What a matrix that was not packed becomes where `kind` is asked for, if its numbers are not too large."""
    if kind in WIDTHS and is_head and WIDTHS[kind] < 8:
        kind = "Q8_0"
    return fitting(kind, columns)


# --- which tensors there are, and where they come from


def _plan(checkpoint: Checkpoint, config: ModelConfig, row: Architecture) -> Iterator[Planned]:
    """Every tensor, in the source's order. UnsupportedModel: a name that the architecture has no place for."""
    names = layer_names(row)
    stacks = experts.find(checkpoint) if config.experts else {}
    biased = config.experts is not None and config.experts.bias
    mlps: dict[str, str] = {}  # a tensor that holds experts to the MLP whose stacks it is written with
    for mlp, stored in stacks.items():
        for projection in experts.PROJECTIONS:
            sources = stored.sources(projection) + (stored.bias_sources(projection) if biased else [])
            mlps |= dict.fromkeys(sources, mlp)
    done: set[str] = set()
    own = _text_names(checkpoint)
    for name, plain in own.items():
        if plain == HEAD and config.tie_embeddings and not row.own_output:
            continue  # a copy of the embeddings
        if name in mlps:
            if mlps[name] not in done:
                done.add(mlps[name])
                yield from _stacks(checkpoint, mlps[name], stacks[mlps[name]], biased, row)
            continue
        if plain.endswith(f"{_FUSED}.weight"):
            yield from _split(checkpoint, config, name, plain, names)
        elif not (row.predicts and predicts_further(plain)):  # what predicts further tokens, which nobody runs here
            yield _tensor(checkpoint, config, row, name, name_in_gguf(plain, names))
    if row.own_output and config.tie_embeddings and HEAD not in own.values():
        embedding = next((name for name, plain in own.items() if plain == EMBEDDING), None)
        if embedding is not None:
            yield _tensor(checkpoint, config, row, embedding, "output.weight")


def _text_names(checkpoint: Checkpoint) -> dict[str, str]:
    """Each tensor's name, and the same without what a model that sees as well puts in front of its text decoder's;
    the tensors of its other parts are not among them."""
    own = {name: text_name(name) for name in checkpoint.names()}
    sees = "text_config" in checkpoint.config
    return {name: plain or name for name, plain in own.items() if plain or not (sees and part_beside_text(name))}


def layer_names(row: Architecture) -> dict[str, str]:
    """Part of a Hugging Face tensor's name to GGUF's, and whole ones outside the layers: the tables of the reader,
    backwards."""
    return {theirs: ours for ours, theirs in (*row.layer_names.items(), *row.outer_names.items())}


def name_in_gguf(name: str, names: Mapping[str, str]) -> str:
    if name in names:
        return names[name]
    prefix, _, rest = name.partition("model.layers.")
    layer, _, rest = rest.partition(".")
    if not prefix and layer.isdecimal():
        if "." in names.get(rest, ""):
            return f"blk.{int(layer)}.{names[rest]}"
        part, _, kind = rest.rpartition(".")
        if kind in ("weight", "bias") and part in names:
            return f"blk.{int(layer)}.{names[part]}.{kind}"
        if names.get(rest) in BARE_NAMES:
            return f"blk.{int(layer)}.{names[rest]}{BARE_NAMES[names[rest]]}"
    raise UnsupportedModel(
        f"GGUF's architecture for this model has no place for {name!r}; write `to` mlx or huggingface", field="to"
    )


def _tensor(checkpoint: Checkpoint, config: ModelConfig, row: Architecture, name: str, gguf_name: str) -> Planned:
    shape, fields = checkpoint.shape(name), head_fields(config)
    if (heads := permuted_heads(row, fields, gguf_name)) and shape[0] != heads * config.head_dim:
        raise CheckpointError(f"{name} has {shape[0]} rows, {heads} heads of {config.head_dim} are expected")
    order = arrangement(row, fields, gguf_name, shape, name)
    if order.axis is not None:
        shape = (*shape[: order.axis], math.prod(shape[order.axis :]))
    rows = None if order.rows is None else np.argsort(order.rows)
    adds = row.norms_include_one and not checkpoint.norms_include_one and adds_one(name)
    heads = None if order.columns is None else np.argsort(order.columns)
    if len(shape) == 1:
        read, rows = partial(_rearranged, checkpoint, name, shape, rows, heads, order.decay), None
    else:
        read = partial(_rearranged, checkpoint, name, shape, None, heads)
    source, stored = checkpoint.stored_as(name), None
    if source in K_WIDTHS and heads is None and not adds and not order.decay and order.axis is None:
        stored = partial(checkpoint.read_stored, name)
    return Planned(gguf_name, name, shape, source, read, rows, float(adds), heads, stored)


def _rearranged(
    checkpoint: Checkpoint,
    name: str,
    shape: tuple[int, ...],
    order: np.ndarray | None,
    heads: np.ndarray | None,
    decay: bool = False,
) -> Value:
    """As the file has it. order: of rows. heads: of parts of the columns."""
    value = checkpoint.read(name)
    if heads is not None:
        value = with_columns(value, heads)
    if isinstance(value, Packed) and tuple(value.shape) == shape:
        return value
    value = (dequantize(value) if isinstance(value, Packed) else value).reshape(shape)
    if decay:
        value = -np.exp(value.astype(np.float64)).astype(np.float32)
    return value if order is None else value[order]


def _split(
    checkpoint: Checkpoint, config: ModelConfig, name: str, plain: str, names: Mapping[str, str]
) -> Iterator[Planned]:
    """One matrix whose rows go by key heads as two, of queries, keys and values, and of gates."""
    shape = checkpoint.shape(name)
    parts = rows_by_key_heads("ssm_in", head_fields(config), shape[0], name)
    for part, rows in zip(("in_proj_qkv", "in_proj_z"), parts, strict=True):
        gguf_name = name_in_gguf(plain.replace("in_proj_qkvz", part), names)
        read = partial(_some_rows, checkpoint, name, rows)
        yield Planned(gguf_name, name, (len(rows), *shape[1:]), checkpoint.stored_as(name), read)


def _some_rows(checkpoint: Checkpoint, name: str, rows: np.ndarray) -> Value:
    value = checkpoint.read(name)
    return value.map(lambda part: part[rows]) if isinstance(value, Packed) else value[rows]


def _stacks(
    checkpoint: Checkpoint, mlp: str, stored: experts.StoredExperts, bias: bool, row: Architecture
) -> Iterator[Planned]:
    """A layer's experts: (experts, out, in), and (experts, out) for biases."""
    layer, names = _layer(mlp), layer_names(row)
    for part, projection in zip(EXPERTS, experts.PROJECTIONS, strict=True):
        name = f"{layer}.{row.layer_names[part]}"
        shape = stored.shape(projection)
        for suffix, sources, size, read in (
            ("weight", stored.sources(projection), shape, stored.weight),
            ("bias", stored.bias_sources(projection), shape[:2], stored.bias),
        ):
            if suffix == "weight" or bias:
                source, held = checkpoint.stored_as(sources[0]), None
                if source in K_WIDTHS and suffix == "weight" and stored.form == "stacked":
                    held = partial(checkpoint.read_stored, sources[0])
                gguf_name = name_in_gguf(f"{name}.{suffix}", names)
                read_one = partial(read, projection)
                yield Planned(gguf_name, f"{name}.{suffix}", size, source, read_one, stored=held, sources=sources)


def _layer(mlp: str) -> str:
    """ "model.layers.3" of the name of what holds a layer's experts, in a decoder by itself."""
    plain = text_name(f"{mlp}.") or mlp
    return ".".join(plain.split(".")[:3])


def _factor(name: str, value: np.ndarray) -> Planned:
    return Planned(name, name, value.shape, "F32", lambda: value)
