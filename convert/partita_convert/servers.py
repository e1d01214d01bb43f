"""Folders for servers: int4 or int8 weights as compressed-tensors packs them (`pack-quantized`), which vLLM and SGLang
serve as they are, and transformers reads.

Embedding, head, norms, routers and whatever is no projection of a layer stay dense in 16 bits. One config group names
all modules, so all weights have groups of one size; modules that stay dense are listed by name, as these readers match
them. Experts are one matrix each, in their published names. Not here: rounding (`centred.py`).
Invariant: what the form cannot say is refused before anything is written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from partita.checkpoint.base import Checkpoint
from partita.checkpoint.names import chooses
from partita.checkpoint.schemes.affine import GROUP_SIZES
from partita.errors import DataError, UnsupportedModel
from partita.quantization import Packed, dequantize

from .adapters import RETAINED, retained_share
from .centred import centred
from .fusing import Fusion
from .recipes import Format, layer_of, quantizable
from .report import Raised
from .write_folder import Layout, Value, WrittenTensor, cast, is_floating, numpy_dtype

FORM = "compressed-tensors"
BITS = (4, 8)
DEFAULT_GROUP = 128
_PARTS = re.compile(r"(?P<experts>experts)\.\d+\.\w+|(?:[qkv]|gate|up)_proj")
_FUSED = re.compile(r".*\.experts\.(?:gate_up_proj|down_proj)(?:_blocks)?")
_DENSE = (".linear_attn.", ".per_layer_")
"""Of what layers that remember by a state project, and what layers are told of tokens: small, or a few rows each, for
which servers' kernels of integers do not fit."""
_SIXTEEN = {"F16": "float16", "BF16": "bfloat16", "float16": "float16", "bfloat16": "bfloat16"}


def parse(text: str) -> Format:
    """What `quantize` asks for: 4 or 8 bits, and perhaps groups. DataError, in one line, for anything else."""
    bits, colon, group = text.partition(":")
    if bits not in map(str, BITS) or (colon and group not in map(str, GROUP_SIZES)):
        raise DataError(
            f"unknown `quantize` {text!r} for `to` {FORM}; expected BITS[:GROUP], {' or '.join(map(str, BITS))} bits "
            f"in groups of {', '.join(map(str, GROUP_SIZES))}",
            field="quantize",
        )
    return Format(int(bits), int(group) if colon else DEFAULT_GROUP)


def formats(checkpoint: Checkpoint, wanted: Format) -> dict[str, Format]:
    """The format of every weight that becomes integers: the projections of layers whose rows 32 divides, all in the
    largest groups, of those wanted at most, that divide every row.

    UnsupportedModel: fused stacks of experts.
    """
    if fused := next((name for name in checkpoint.names() if _FUSED.fullmatch(name)), None):
        raise UnsupportedModel(
            f"{checkpoint.path.name}: {fused} holds experts in one piece, for which `to` {FORM} has no form that "
            "servers read: say `to` huggingface, and let the server quantize"
        )
    weights = quantizable(checkpoint).items()
    rows = {name: shape[-1] for name, shape in weights if _is_projection(name) and len(shape) == 2}
    sizes = [size for size in GROUP_SIZES if size <= wanted.group_size]
    group = max((size for size in sizes if all(row % size == 0 for row in rows.values())), default=min(GROUP_SIZES))
    return {name: Format(wanted.bits, group) for name in checkpoint.names() if name in rows}


def _is_projection(name: str) -> bool:
    return layer_of(name) is not None and not any(part in name for part in _DENSE)


def dense_dtype(checkpoint: Checkpoint, asked: str | None) -> str:
    """Of what stays dense, and of scales: what was asked for, else the source's own 16-bit dtype, else bfloat16."""
    if asked is not None:
        return asked
    embedding = next((name for name in checkpoint.names() if name.endswith("embed_tokens.weight")), None)
    stored = "" if embedding is None else checkpoint.stored_as(embedding)
    said = checkpoint.config.get("dtype", checkpoint.config.get("torch_dtype"))
    return _SIXTEEN.get(stored) or _SIXTEEN.get(str(said)) or "bfloat16"


class ServerTransform:
    """What such a folder makes of each tensor. chosen: the formats of those that become integers."""

    def __init__(self, fusion: Fusion, chosen: Mapping[str, Format], columns: Mapping[str, np.ndarray], dtype: str):
        self.fusion, self.chosen, self.columns, self.dtype = fusion, chosen, columns, numpy_dtype(dtype)

    def __call__(self, name: str, value: Value) -> Value:
        if name in self.chosen:
            return self.integers(name, value)
        if isinstance(value, Packed):
            value = dequantize(value)
        dense = cast(name, value, self.dtype) if is_floating(value) and not chooses(name) else value
        if self.fusion.changes(name):
            self.fusion.note(name, dense)
        return dense

    def integers(self, name: str, value: Value) -> Packed:
        wanted = self.chosen[name]
        return centred(value, wanted.bits, wanted.group_size, self.dtype, self.columns.get(name), name)


def kept_wide(fusion: Fusion, chosen: Mapping[str, Format], integers: Callable[[str, Value], Packed]) -> set[str]:
    """The weights that stay dense so that an adapter's change is not lost in rounding, each with those that servers
    fuse with it, which must be alike. integers(name, value): what a weight becomes. Notes what is left of each change.

    DataError: a change that would be lost, where the policy refuses that.
    """
    together: dict[str, list[str]] = {}
    for name in chosen:
        together.setdefault(_fused_by_servers(name), []).append(name)
    wide = set[str]()
    for name in sorted(fusion.names & chosen.keys()):
        base, delta = fusion.delta(name)
        packed = integers(name, base)
        share = retained_share(packed, delta, integers(name, fusion.changed.read(name)))
        fusion.retained[name] = share
        if abs(1 - share) <= 1 - RETAINED or fusion.policy == "keep":
            continue
        if fusion.policy == "refuse":
            raise DataError(
                f"{name}: {100 * share:.0f} % of the adapter's change would be left in {chosen[name]}: convert the "
                "dense original, or serve the adapter beside the model",
                field="adapter_loss",
            )
        wide.update(together[_fused_by_servers(name)])
        nbytes = sum(array.nbytes for array in arrays(name, packed).values())
        fusion.raised[name] = Raised(str(chosen[name]), share, nbytes)
    return wide


def _fused_by_servers(name: str) -> str:
    """One text for all weights that servers make one matrix of: queries, keys and values, gate and up, experts."""
    return _PARTS.sub(lambda found: found["experts"] or ("qkv" if found[0][0] in "qkv" else "gate_up"), name)


def layout(chosen: Mapping[str, Format]) -> Layout:
    """How `write_folder` writes it."""

    def settings(config: dict[str, Any], written: Sequence[WrittenTensor]) -> dict[str, Any]:
        own = next(iter(chosen.values()), Format(BITS[0], DEFAULT_GROUP))
        dtype = next((tensor.target for tensor in written if tensor.name.endswith("embed_tokens.weight")), None)
        said = {"quantization_config": block(own, ignored(chosen, written))}
        return config | ({"dtype": dtype} if dtype else {}) | said

    return Layout("pt", part_names, arrays, settings)


def ignored(chosen: Mapping[str, Format], written: Sequence[WrittenTensor]) -> list[str]:
    """Modules with a matrix that stay dense: the head, tied or not, and all that are not chosen."""
    dense = [
        tensor.name.removesuffix(".weight")
        for tensor in written
        if tensor.name.endswith(".weight") and len(tensor.shape) == 2 and tensor.name not in chosen
    ]
    return list(dict.fromkeys(["lm_head", *(name for name in dense if not name.endswith("embed_tokens"))]))


def block(own: Format, ignore: Sequence[str]) -> dict[str, Any]:
    """quantization_config, in the fields that these readers look for."""
    weights: dict[str, Any] = {
        "num_bits": own.bits,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": own.group_size,
        "dynamic": False,
    }
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": FORM,
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": list(ignore),
        "kv_cache_scheme": None,
    }


def part_names(name: str) -> tuple[str, ...]:
    """The tensors that `name` may become."""
    return (name, *(f"{name}_{part}" for part in ("packed", "scale", "shape")))


def arrays(name: str, value: Value) -> dict[str, np.ndarray]:
    """A tensor as safetensors keeps it."""
    if not isinstance(value, Packed):
        return {name: np.ascontiguousarray(value).reshape(value.shape)}
    parts = {"packed": value.weight.view(np.int32), "scale": value.scales, "shape": np.array(value.shape, np.int64)}
    return {f"{name}_{part}": np.ascontiguousarray(array) for part, array in parts.items()}
