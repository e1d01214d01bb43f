"""Olmo Hybrid as transformers saves it, under the names and in the shapes of the published files.

    q_conv1d, k_conv1d, v_conv1d    transformers has one convolution, and saves it in three equal parts, whatever share
                                    of its channels belongs to queries, keys and values
    feedforward_layer_norm          so it calls two norms: in blocks with attention, the one behind attention, which is
                                    published as post_attention_layernorm

Source: transformers' conversion_mapping.py, whose way back does not know where a part ended. Not here: what the tensors
mean. Invariant: a folder with the published shapes and names is left as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from ...files.safetensors import StoredTensor
from .stored import Found, ReadTensor, Scheme, StoredWeight

_MODEL = "olmo_hybrid"
_PARTS = ("q", "k", "v")
_SAVED_NORM, _PUBLISHED_NORM = "feedforward_layer_norm.weight", "post_attention_layernorm.weight"


@dataclass(frozen=True, kw_only=True)
class _Rows(StoredWeight):
    """Some rows of dense tensors that are one below the other."""

    sources: tuple[str, ...]
    rows: slice

    def read(self, tensor: ReadTensor) -> np.ndarray:
        parts = [tensor(name) for name in self.sources]
        return (parts[0] if len(parts) == 1 else np.concatenate(parts))[self.rows]


def find(tensors: Mapping[str, StoredTensor], config: Mapping[str, Any], where: str, read: ReadTensor) -> Found:
    """See `stored.Finder`."""
    if config.get("model_type") != _MODEL:
        return {}
    found: Found = {}
    for name in tensors:
        if name.endswith("linear_attn.q_conv1d.weight"):
            found |= _convolution(tensors, config, name.removesuffix("q_conv1d.weight"))
        if name.endswith(_SAVED_NORM):
            found |= _norm(tensors, name)
    return found


def _convolution(tensors: Mapping[str, StoredTensor], config: Mapping[str, Any], module: str) -> Found:
    """Three parts whose rows are together as many as the config says, and each of them not."""
    names = tuple(f"{module}{part}_conv1d.weight" for part in _PARTS)
    wanted, parts = _channels(config), [tensors[name] for name in names if name in tensors]
    counts = [part.shape[0] for part in parts if part.shape]
    if wanted is None or counts == wanted or len(counts) != len(wanted) or sum(counts) != sum(wanted):
        return {}
    return {
        name: _Rows(
            name=name,
            shape=(end - start, *parts[0].shape[1:]),
            stored_as=parts[0].dtype,
            sources=names,
            rows=slice(start, end),
        )
        for name, (start, end) in zip(names, pairwise(accumulate(wanted, initial=0)), strict=True)
    }


def _channels(config: Mapping[str, Any]) -> Sequence[int] | None:
    """Of queries, keys and values. None where the config does not say them, which whoever reads it reports."""
    sizes: list[int] = []
    for of in ("key", "value"):
        width, heads = config.get(f"linear_{of}_head_dim"), config.get(f"linear_num_{of}_heads")
        if not isinstance(width, int) or not isinstance(heads, int):
            return None
        sizes.append(width * heads)
    keys, values = sizes
    return [keys, keys, values]


def _norm(tensors: Mapping[str, StoredTensor], name: str) -> Found:
    """A norm of a block with attention under its published name."""
    block = name.removesuffix(_SAVED_NORM)
    published = block + _PUBLISHED_NORM
    if f"{block}self_attn.q_proj.weight" not in tensors or published in tensors:
        return {}
    tensor = tensors[name]
    renamed = _Rows(name=published, shape=tensor.shape, stored_as=tensor.dtype, sources=(name,), rows=slice(None))
    return {published: renamed, name: None}


SCHEME = Scheme(find)
