"""A conversation's cache as a file: saved in one run, gone on with in another, on any backend.

Not here: prompts, templates, when to save. Invariants: a file holds exactly what the cache held, bit for bit; it is
taken only by a cache that would have computed the same, and every difference is named; damage is reported before
anything changes. It is written whole or not at all.

Format: safetensors. `__metadata__` holds one JSON table, `partita_session`; the arrays have the names of `layout`, each
in its own dtype, then what recurrent layers had at their latest checkpoint, then the token ids, which are U32. A CRC-32
covers the table and every array, in the order of `Cache.arrays`. A session is one row.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from .. import __version__
from ..errors import CheckpointError, ContextError, DataError
from ..files.atomic import whole_file
from ..files.bounded import map_file, parse
from ..files.safetensors import MAX_HEADER_BYTES, SafetensorsSet, read_header, read_metadata
from ..files.safetensors_writer import write_tensors
from ..files.typed import typed
from .kv_format import KVFormat
from .snapshot import Snapshot
from .spec import CacheSpec, LayerSpec
from .state import Cache

FORMAT = 3
_KEY = "partita_session"
_TOKENS = "tokens"
_STORED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "uint32": "U32", "int32": "I32"}

Position = Annotated[int, Meta(ge=0, lt=1 << 31)]
"""Positions are int32."""
Place = tuple[str, tuple[int, ...], str]
"""Name, shape and dtype of one array."""


@dataclass(frozen=True)
class Identity:
    """Whose keys and values these are. model: a name for people; fingerprint: `Checkpoint.fingerprint`."""

    model: str
    fingerprint: str
    adapter: str = ""


@dataclass(frozen=True)
class _Described:
    """What a description of this format holds, beside what `_check_same` compares. In tokens, as in `Snapshot`."""

    offset: Position
    reached: Position
    extra: dict[str, Any]
    checkpoint: Position | None = None


@dataclass(frozen=True)
class Saved:
    """What a file holds: the state, the ids whose keys and values it is, and what the caller put beside it."""

    snapshot: Snapshot
    tokens: list[int]
    extra: dict[str, Any] = field(default_factory=dict[str, Any])


def save(
    path: Path, cache: Cache, tokens: Sequence[int], identity: Identity, extra: Mapping[str, Any] | None = None
) -> None:
    """Write a cache of one row and its tokens, for one writer at a time.

    extra: JSON values for the caller's own use. Raises DataError where the file cannot be written (what stood there is
    then still there), ContextError when the tokens are not what the cache holds.
    """
    if cache.batch != 1 or cache.offsets[0] != len(tokens):
        raise ContextError(f"a session of {len(tokens)} tokens cannot be saved from a cache that holds {cache.offsets}")
    state = cache.state()
    checkpoint = max(state.checkpoints_of(0), default=None)
    places = _places(cache, state.reached[0], len(tokens), checkpoint)
    held = [*state.arrays, *(() if checkpoint is None else state.checkpoints_of(0)[checkpoint])]
    names = zip(places, held, strict=False)
    arrays = [_host(cache, array, place) for place, array in names] + [np.asarray(tokens, np.uint32)]
    header = {
        **_description(cache, identity),
        "partita": __version__,
        "model": identity.model,
        "offset": state.offsets[0],
        "reached": state.reached[0],
        **({} if checkpoint is None else {"checkpoint": checkpoint}),
        "extra": json.loads(json.dumps(dict(extra or {}))),  # as it will be read
    }
    header["crc32"] = _checksum(header, arrays)
    _write(path, header, {name: array for (name, _, _), array in zip(places, arrays, strict=True)})


def load(path: Path, cache: Cache, identity: Identity) -> Saved:
    """Read a file for this cache, which is left as it is: `cache.restore(saved.snapshot)` takes it.

    Raises ContextError for a session of another model or cache layout, naming what differs, CheckpointError for a file
    that is damaged or no saved session.
    """
    data = map_file(path)
    header = _header(read_metadata(data, path.name), path.name)
    _check_same(header, cache, identity, path.name)
    tensors, end = read_header(data, path.name)
    store = SafetensorsSet(tensors, {path.name: data}, {path.name: end})
    offset, reached, checkpoint = header["offset"], header["reached"], header.get("checkpoint")
    places = _places(cache, reached, offset, checkpoint)
    wanted = {name: (shape, _STORED[dtype]) for name, shape, dtype in places}
    found = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
    if found != wanted:
        different = next(name for name in (*wanted, *found) if wanted.get(name) != found.get(name))
        raise CheckpointError(
            f"{path.name}: {different} should be {wanted.get(different)} and is {found.get(different)}; it is damaged"
        )
    arrays = [store.read(name) for name, _, _ in places]
    if _checksum(header, arrays) != header.get("crc32"):
        raise CheckpointError(f"{path.name}: what it holds does not match its checksum; the file is damaged")
    held = [cache.ops.array(array) for array in arrays[:-1]]
    count = len(layout(cache.spec, cache.dense, reached))
    kept = () if checkpoint is None else ({checkpoint: tuple(held[count:])},)
    snapshot = Snapshot(cache.spec, (offset,), (reached,), held[:count], kept)
    positions = [array for (name, _, _), array in zip(places, arrays, strict=True) if name.startswith("positions.")]
    expected = positions_of(cache.spec, reached)
    sound = offset <= reached and arrays[0][0] == offset and snapshot.can_trim(0) and (checkpoint or 0) <= offset
    if not sound or not all(np.array_equal(a, b) for a, b in zip(positions, expected, strict=True)):
        raise CheckpointError(f"{path.name}: its positions are not those of {offset} tokens; the file is damaged")
    return Saved(snapshot, arrays[-1].tolist(), header["extra"])


def read_extra(path: Path) -> tuple[str, dict[str, Any]]:
    """The model's name and what the caller put beside the session, without reading the cache."""
    header = _header(read_metadata(map_file(path), path.name), path.name)
    return str(header.get("model")), header["extra"]


# What a file of a cache looks like


def layout(spec: CacheSpec, dense: Mapping[int, str], reached: int) -> list[Place]:
    """Name, shape and dtype of every array of a cache of one row that `reached` tokens went into, in its order.

    dense: dtype of 16 and of 32 bits (`Cache.dense`).
    """
    places: list[Place] = [("next", (1,), "int32")]
    for i, span in enumerate(spec.spans):
        places.append((f"positions.{i}", (1, span.sinks + spec.slots(span, reached)), "int32"))
    rotated = [layer for layer in spec.attention.values() if layer.span.sinks and layer.rope is not None]
    for i, layer in enumerate(dict.fromkeys(rotated)):
        shape = (1, rotated.count(layer) * layer.kv_heads, layer.span.sinks + 1, layer.head_dim)
        places.append((f"unrotated.{i}", shape, dense[spec.kv.sink_bits]))
    for i, layer in spec.attention.items():
        slots, sinks, name = spec.slots(layer.span, reached), layer.span.sinks, f"layers.{i}"
        if spec.kv.joint:
            places.append(
                (f"{name}.kv", (2, 1, layer.kv_heads, sinks + slots, layer.head_dim), dense[spec.kv.key_bits])
            )
            continue
        places += _packed(name, layer, slots, spec.kv, dense)
        if sinks:
            places.append(
                (f"{name}.sinks", (2, 1, layer.kv_heads, sinks + 1, layer.head_dim), dense[spec.kv.sink_bits])
            )
    return [*places, *_states(spec)]


def _places(cache: Cache, reached: int, tokens: int, checkpoint: int | None) -> list[Place]:
    """Of all that is in a file. checkpoint: the tokens of the one that is kept; None: of none."""
    earlier = (
        []
        if checkpoint is None
        else [(f"checkpoint.{name}", shape, dtype) for name, shape, dtype in _states(cache.spec)]
    )
    return [*layout(cache.spec, cache.dense, reached), *earlier, (_TOKENS, (tokens,), "uint32")]


def _states(spec: CacheSpec) -> Iterator[Place]:
    """Of recurrent layers, in the order of `States.arrays`."""
    for i, layer in spec.recurrent.items():
        yield f"layers.{i}.tail", (1, *layer.tail), "float32"
        if layer.matrix:
            yield f"layers.{i}.matrix", (1, *layer.matrix), "float32"


def _packed(name: str, layer: LayerSpec, slots: int, kv: KVFormat, dense: Mapping[int, str]) -> Iterator[Place]:
    """Of a ring with a packed side, in the order of `rings`."""
    lead, size = (1, layer.kv_heads, slots), layer.head_dim
    sides = (("k", kv.key_bits), ("v", kv.value_bits))
    if max(kv.key_bits, kv.value_bits) < 16:
        yield from ((f"{name}.{side}", (*lead, size * bits // 32), "uint32") for side, bits in sides)
        yield from ((f"{name}.{part}", (2, *lead, size // kv.group_size), "float16") for part in ("scales", "biases"))
        return
    for side, bits in sides:
        if bits >= 16:
            yield f"{name}.{side}", (*lead, size), dense[bits]
            continue
        yield f"{name}.{side}.weight", (*lead, size * bits // 32), "uint32"
        yield from (
            (f"{name}.{side}.{part}", (*lead, size // kv.group_size), "float16") for part in ("scales", "biases")
        )


def positions_of(spec: CacheSpec, reached: int) -> Iterator[np.ndarray]:
    """What the slots of each kind of layer hold after `reached` tokens, int32 (1, sinks + slots): a slot has the last
    position that was written to it, since a trim leaves slots as they are and a position has one slot."""
    for span in spec.spans:
        ring, slots = spec.ring(span), spec.slots(span, reached)
        turning = max(reached - span.sinks, 0)
        slot = np.arange(slots, dtype=np.int64)
        last = slot if ring is None else slot + (turning - 1 - slot) // ring * ring
        held = (last >= 0) & (last < turning) & (slot < (slots if ring is None else ring))
        sink = np.arange(span.sinks)
        kept = np.where(sink < reached, sink, -1)
        yield np.concatenate([kept, np.where(held, last + span.sinks, -1)])[None].astype(np.int32)


def _description(cache: Cache, identity: Identity) -> dict[str, Any]:
    """What decides whether another cache would have computed the same: key to value, JSON types only."""
    spec = cache.spec
    widths = (spec.kv.key_bits, spec.kv.value_bits, spec.kv.sink_bits)
    return {
        "format": FORMAT,
        "fingerprint": identity.fingerprint,
        "adapter": identity.adapter,
        "kv": str(spec.kv),
        "context": spec.context,
        "sinks": spec.sinks,
        "chunk": spec.chunk,
        "slack": spec.slack,
        "layers": hashlib.sha256(repr(spec.layers).encode()).hexdigest()[:16],
        "dtype": cache.dense[16] if 16 in widths else cache.dense[32],
    }


def _check_same(header: Mapping[str, Any], cache: Cache, identity: Identity, name: str) -> None:
    """Raise ContextError for the first difference, saying what to do about it."""
    now = _description(cache, identity)
    key = next((key for key, value in now.items() if header.get(key) != value), None)
    if key is None:
        return
    was, value = header.get(key), now[key]
    if key == "fingerprint":
        was, value = header.get("model"), identity.model
        same = was == value
        raise ContextError(
            f"{name}: the session was saved with the model {was}, "
            + ("and that name now leads to other weights" if same else f"now {value} is loaded")
            + ": give that model or another file"
        )
    settings = {name: f"`{name}`" for name in ("kv", "context", "sinks")}
    words = {
        "format": ("format", "save it again with this partita"),
        "adapter": ("adapter", "give that adapter or another file"),
        "layers": ("layers (windows, heads, rotary embedding) of identity", "begin another file"),
        "dtype": ("keys and values in", "give the `dtype` and `backend` that it was saved with, or another file"),
    }
    name_of = settings.get(key, key)
    what, todo = words.get(key, (name_of, f"give {name_of} {was} or another file"))
    was, value = (repr(side) if side == "" else side for side in (was, value))
    field = key if key in (*settings, "adapter", "dtype") else None
    raise ContextError(
        f"{name}: the session was saved with {what} {was}, now {what} {value} is asked: {todo}", field=field
    )


# Bytes


def _host(cache: Cache, array: Any, place: Place) -> np.ndarray:
    """One array of the cache in its own dtype, cut to the slots that its tokens need (rows that were in a batch with
    longer ones have more; the last slot of what is left is empty too)."""
    _, shape, dtype = place
    if dtype == "bfloat16":  # to_numpy gives the same numbers in float32
        import ml_dtypes

        found = cache.ops.to_numpy(array).astype(ml_dtypes.bfloat16)
    else:
        found = cache.ops.to_numpy(array)
    found = found[tuple(slice(size) for size in shape)]
    return found.view(np.uint32) if dtype == "uint32" else found


def _bytes(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _checksum(header: Mapping[str, Any], arrays: Sequence[np.ndarray]) -> int:
    table = {key: value for key, value in header.items() if key != "crc32"}
    crc = zlib.crc32(json.dumps(table, sort_keys=True).encode())
    for array in arrays:
        crc = zlib.crc32(_bytes(array), crc)
    return crc


def _write(path: Path, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    with whole_file(path, private=True) as partial:
        write_tensors(partial, arrays, {_KEY: json.dumps(header)})
        with partial.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER_BYTES:
            raise DataError(f"{path}: {length} bytes of messages are too many for one file: begin a new conversation")


def _header(metadata: Mapping[str, str], name: str) -> dict[str, Any]:
    if _KEY not in metadata:
        raise CheckpointError(f"{name}: not a saved session; give a file that was saved as one")
    try:
        header = typed(parse(metadata[_KEY]), dict[str, Any])
        if typed(header.get("format"), int, "format") == FORMAT:
            typed(header, _Described)
    except ValueError as error:
        raise CheckpointError(f"{name}: the session's description is damaged: {error}") from None
    return {"extra": {}, **header}
