"""Adapters in: a PEFT or an mlx-lm folder, and the checkpoint that it makes of a base.

Not here: training, the numbers of quantization, writing (`partita_convert.adapters`). Invariants: what a config asks
for and is not done here is refused by name; a pickle is never opened; a tensor that does not fit the base is named.

Both kinds add `scale * B A` to a weight W of shape (out, in), with A (r, in) and B (out, r); DoRA (arXiv 2402.09353)
then brings each row to a learned length. They differ in how that is kept:
    PEFT    base_model.model.<module>.lora_A.weight (r, in), .lora_B.weight (out, r), .lora_magnitude_vector (out,);
            scale = lora_alpha / r, with use_rslora lora_alpha / sqrt(r) (arXiv 2312.03732); both may differ by module
    mlx-lm  <module>.lora_a (in, r), .lora_b (r, out), .m (out,); one scale, given as it is
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..brief import Brief
from ..checkpoint.base import Checkpoint
from ..checkpoint.names import HEAD, Index, text_name
from ..checkpoint.overlay import Derived
from ..errors import CheckpointError, UnsupportedModel
from ..files.bounded import find, is_table, read_object
from ..files.paths import own
from ..files.safetensors import SafetensorsSet, open_file
from ..quantization import Packed, dequantize
from . import peft

CONFIG, PEFT_FILE, MLX_FILE = "adapter_config.json", "adapter_model.safetensors", "adapters.safetensors"
EMBEDDINGS = ("embed_tokens", "wte", "tok_embeddings")
_FLOATS = ("F32", "F16", "BF16", "F64")


@dataclass(frozen=True)
class LowRank:
    """What is done to one weight of shape (out, in): `scale * b a` is added, and rows get lengths where magnitude is.

    a: (r, in), b: (out, r), as stored; stacked experts have (experts, r, in) and (experts, out, r). magnitude: (out,).
    """

    a: np.ndarray
    b: np.ndarray
    scale: float
    magnitude: np.ndarray | None = None

    @property
    def rank(self) -> int:
        return self.a.shape[-2]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight."""
        return (*self.b.shape[:-1], self.a.shape[-1])

    def delta(self) -> np.ndarray:
        """`scale * b a` in float32, without the lengths, which depend on the base."""
        return np.float32(self.scale) * (self.b.astype(np.float32) @ self.a.astype(np.float32))

    def applied(self, base: np.ndarray) -> np.ndarray:
        """The weight that this makes of `base`, in float32."""
        changed = base.astype(np.float32) + self.delta()
        if self.magnitude is None:
            return changed
        lengths = np.sqrt(np.square(changed).sum(-1, keepdims=True))
        return changed * (self.magnitude.astype(np.float32)[..., None] / np.maximum(lengths, np.float32(1e-30)))


@dataclass(frozen=True)
class Adapter(Brief):
    """An adapter by the names of the weights that it changes.

    rank: the largest. base_model: what its config names, for people. replaced: tensors to be taken as they are
    (PEFT's modules_to_save). dropout: of its training, which loading ignores.
    """

    path: Path
    kind: Literal["peft", "mlx-lm"]
    changes: Mapping[str, LowRank]
    replaced: Mapping[str, np.ndarray]
    base_model: str | None = None
    dropout: float = 0.0

    @property
    def rank(self) -> int:
        return max((change.rank for change in self.changes.values()), default=0)

    @property
    def targets(self) -> tuple[str, ...]:
        """Last parts of the modules' names: ("k_proj", "q_proj")."""
        return tuple(sorted({name.split(".")[-2] for name in self.changes}))

    @property
    def is_dora(self) -> bool:
        return any(change.magnitude is not None for change in self.changes.values())

    def delta(self, name: str) -> np.ndarray | None:
        """The low-rank part of what is done to a weight, float32 (out, in); None for a weight that stays."""
        return self.changes[name].delta() if name in self.changes else None


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def open_adapter(folder: Path | str) -> Adapter:
    """Read a PEFT or mlx-lm folder: the config, and the tensors mapped.

    CheckpointError: files that are missing, damaged or do not go together. UnsupportedModel: a kind of adapter, or a
    setting of one, that is not implemented.
    """
    folder = own(folder)
    settings = find(folder, CONFIG)
    if settings is None:
        raise CheckpointError(f"{folder}: there is no {CONFIG}; give the folder of a PEFT or mlx-lm adapter")
    config = read_object(settings)
    if "peft_type" in config:
        return _open_peft(folder, config)
    if "lora_parameters" in config or "fine_tune_type" in config:
        return _open_mlx(folder, config)
    raise CheckpointError(f"{folder}: {CONFIG} is neither PEFT's (no peft_type) nor mlx-lm's (no lora_parameters)")


def _store(folder: Path, file: str) -> SafetensorsSet:
    place = find(folder, file)
    if place is None:
        if (folder / "adapter_model.bin").is_file():
            raise CheckpointError(
                f"{folder}: adapter_model.bin is a pickle, which can run code: save it as safetensors"
            )
        raise CheckpointError(f"{folder}: there is no {file} beside {CONFIG}")
    return open_file(place)


# ---------------------------------------------------------------- PEFT


def _open_peft(folder: Path, config: Mapping[str, Any]) -> Adapter:
    settings = peft.settings(config)
    store = _store(folder, PEFT_FILE)
    parts, replaced = peft.grouped(store.tensors, PEFT_FILE)
    settings.check_work(parts)
    changes: dict[str, LowRank] = {}
    for module, names in parts.items():
        where = f"{folder.name}: {module}"
        if "embedding_a" in names or "embedding_b" in names:
            a, b = _pair(store, names, "embedding_b", "embedding_a", where)  # (out, r) (r, in): the weight's transpose
            a, b = a.T, b.T
        else:
            a, b = _pair(store, names, "a", "b", where)
        rank, scale = settings.of(module)
        magnitude = store.read(names["magnitude"]) if "magnitude" in names else None
        if (magnitude is None) == settings.dora:
            raise CheckpointError(f"{where}: use_dora is {settings.dora}, and there is {names.get('magnitude')!r}")
        changes[f"{module}.weight"] = _checked(LowRank(a, b, scale, _flat(magnitude)), rank, where)
    base = config.get("base_model_name_or_path")
    return Adapter(
        folder,
        "peft",
        _some(changes, replaced, folder),
        {name: store.read(stored) for name, stored in replaced.items()},
        base if isinstance(base, str) else None,
        settings.dropout,
    )


def _pair(
    store: SafetensorsSet, names: Mapping[str, str], first: str, second: str, where: str
) -> tuple[np.ndarray, np.ndarray]:
    if first not in names or second not in names:
        raise CheckpointError(f"{where}: one of the two low-rank matrices is missing")
    for name in (names[first], names[second]):
        if store.tensors[name].dtype not in _FLOATS:
            raise CheckpointError(f"{where}: {name} is in {store.tensors[name].dtype}, not floats")
    return store.read(names[first]), store.read(names[second])


def _flat(magnitude: np.ndarray | None) -> np.ndarray | None:
    return None if magnitude is None else magnitude.reshape(-1)


def _checked(change: LowRank, rank: int, where: str) -> LowRank:
    a, b = change.a, change.b
    if not (a.ndim == b.ndim in (2, 3) and a.shape[:-2] == b.shape[:-2] and a.shape[-2] == b.shape[-1] > 0):
        raise CheckpointError(f"{where}: matrices of shapes {a.shape} and {b.shape} have no product")
    if change.rank != rank:
        raise CheckpointError(f"{where}: its rank is {change.rank}, {CONFIG} says {rank}")
    if change.magnitude is not None and (a.ndim == 3 or change.magnitude.shape != b.shape[:1]):
        raise CheckpointError(f"{where}: a magnitude of shape {change.magnitude.shape} does not go with {b.shape}")
    return change


def _some(changes: Mapping[str, LowRank], replaced: Iterable[str], folder: Path) -> Mapping[str, LowRank]:
    if not changes and not list(replaced):
        raise CheckpointError(f"{folder}: the adapter changes nothing: it holds no low-rank matrices")
    return changes


# ---------------------------------------------------------------- mlx-lm


def _open_mlx(folder: Path, config: Mapping[str, Any]) -> Adapter:
    kind = config.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise UnsupportedModel(f"{CONFIG}: fine_tune_type {kind!r} is not an adapter that is read here")
    parameters = config.get("lora_parameters")
    if not is_table(parameters):
        raise CheckpointError(f"{CONFIG}: lora_parameters is not a table")
    rank, scale = parameters.get("rank"), parameters.get("scale")
    if type(rank) is not int or rank < 1 or not peft.is_number(scale):
        raise CheckpointError(f"{CONFIG}: rank {rank!r} and scale {scale!r} are not a count and a number")
    store = _store(folder, MLX_FILE)
    parts: dict[str, dict[str, str]] = {}
    for name in store.tensors:
        module, _, part = name.rpartition(".")
        if part not in ("lora_a", "lora_b", "m") or not module:
            raise UnsupportedModel(f"{MLX_FILE}: the tensor {name!r} is not part of a low-rank adapter")
        parts.setdefault(module, {})[part] = name
    changes: dict[str, LowRank] = {}
    for module, names in parts.items():
        where = f"{folder.name}: {module}"
        a, b = _pair(store, names, "lora_a", "lora_b", where)
        if a.ndim == 2 and b.ndim == 2:  # stacks of experts are kept the other way round already
            a, b = (b, a) if module.rpartition(".")[2] in EMBEDDINGS else (a.T, b.T)
        magnitude = store.read(names["m"]) if "m" in names else None
        if (magnitude is None) == (kind == "dora"):
            raise CheckpointError(f"{where}: fine_tune_type is {kind!r}, and there is {names.get('m')!r}")
        changes[f"{module}.weight"] = _checked(LowRank(a, b, float(scale), _flat(magnitude)), rank, where)
    base = config.get("model")
    return Adapter(
        folder,
        "mlx-lm",
        _some(changes, (), folder),
        {},
        base if isinstance(base, str) else None,
        peft.dropout(parameters.get("dropout")),
    )


# ---------------------------------------------------------------- a base and an adapter


@dataclass(frozen=True, kw_only=True)
class _Fused(Derived):
    """changes, replaced: by the base's own names."""

    changes: Mapping[str, LowRank]
    replaced: Mapping[str, np.ndarray]

    def read(self, name: str) -> np.ndarray | Packed:
        # a module may be given whole and changed as well: PEFT keeps an adapted embedding's own weight beside it
        value = self.replaced[name].copy() if name in self.replaced else self.base.read(name)
        if name not in self.changes:
            return value
        dense = dequantize(value) if isinstance(value, Packed) else value
        with np.errstate(all="ignore"):  # reported below
            changed = self.changes[name].applied(dense)
        if not np.isfinite(changed).all():
            raise CheckpointError(f"{self.path.name}: {name} with the adapter has values that are not finite")
        return changed.astype(dense.dtype, copy=False)

    def stored_as(self, name: str) -> str:
        stored = self.base.stored_as(name)
        touched = name in self.changes or name in self.replaced
        return "F32" if touched and stored not in (*_FLOATS, "F8_E4M3", "F8_E5M2") else stored

    def fingerprint(self) -> str:
        """The base's, and every byte of the adapter: it is small, and another one must not pass for it."""
        import hashlib

        digest = hashlib.sha256(self.base.fingerprint().encode())
        for name, change in sorted(self.changes.items()):
            lengths = b"" if change.magnitude is None else change.magnitude.tobytes()
            digest.update(f"{name}\0{change.scale!r}\0".encode() + change.a.tobytes() + change.b.tobytes() + lengths)
        for name, value in sorted(self.replaced.items()):
            digest.update(f"{name}\0".encode() + value.tobytes())
        return digest.hexdigest()


def fused(checkpoint: Checkpoint, adapter: Adapter) -> Checkpoint:
    """The checkpoint with the adapter's changes in its weights, each made when it is read.

    A dense weight keeps its dtype, the sum being made in float32; a packed one becomes dense float32. CheckpointError:
    a module or a shape that the base does not have. UnsupportedModel: a change that the base's tied embedding cannot
    express.
    """
    present = Index(checkpoint.names())
    changes = {resolved(name, present, adapter): change for name, change in adapter.changes.items()}
    replaced = {resolved(name, present, adapter): value for name, value in adapter.replaced.items()}
    for name, shape in [(n, c.shape) for n, c in changes.items()] + [(n, v.shape) for n, v in replaced.items()]:
        if checkpoint.shape(name) != tuple(shape):
            raise CheckpointError(
                f"{adapter.path.name}: {name} is {checkpoint.shape(name)} in {checkpoint.path.name} and "
                f"{tuple(shape)} in the adapter, which was made for {adapter.base_model or 'another model'}"
            )
    if checkpoint.config.get("tie_word_embeddings"):
        _check_tied({*changes, *replaced}, adapter)
    return _Fused.of(checkpoint, changes=changes, replaced=replaced)


def resolved(name: str, present: Index, adapter: Adapter) -> str:
    """The base's name of a weight that an adapter names, which other libraries may have put elsewhere in the model."""
    if (found := present.find(name)) is not None:
        return found
    raise CheckpointError(
        f"{adapter.path.name}: the adapter changes {name}, which the model does not have; it was made for "
        f"{adapter.base_model or 'another model'}"
    )


def _check_tied(names: Iterable[str], adapter: Adapter) -> None:
    """The head is the embedding. mlx-lm changes both at once, as fusing does; PEFT changes one of the two."""
    for name in names:
        if text_name(name) == HEAD or (adapter.kind == "peft" and name.split(".")[-2] in EMBEDDINGS):
            raise UnsupportedModel(
                f"{adapter.path.name}: the adapter changes {name} alone, which this model shares between embedding and "
                "head"
            )
