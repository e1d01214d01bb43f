"""llama.cpp's mixtures: a type for most matrices, and another one for those that suffer most from few bits.

Not here: rounding (`quants`), roles that are never quantized (`write`). Invariant: a model of a family that is written
here gets, tensor for tensor, the types that `llama-quantize` gives it (`llama_tensor_get_type` in its source), but for
what types are in a block of fewer values: 3 bits are Q4_0 there, as 2 bits are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from partita.checkpoint.gguf.arrangement import part_of
from partita.model.config import ModelConfig

from .file import TYPES

NARROWER = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""What rows become that 256 does not divide."""
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
MIXES = {
    "Q6_K": ("Q6_K", 18),
    "Q5_K_M": ("Q5_K", 17),
    "Q5_K_S": ("Q5_K", 16),
    "Q4_K_M": ("Q4_K", 15),
    "Q4_K_S": ("Q4_K", 14),
    "Q3_K_L": ("Q3_K", 13),
    "Q3_K_M": ("Q3_K", 12),
    "Q3_K_S": ("Q3_K", 11),
    "Q2_K": ("Q2_K", 10),
}
"""Name to the type of most matrices and the number of `general.file_type`."""
_KEPT = "per_layer_model_proj.weight"
_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
_VALUES = ("attn_v", "attn_qkv", "attn_kv_b")


def fitting(type_name: str, columns: int) -> str:
    """The type, or the one of smaller blocks that its rows become; F16 where none divides them."""
    if columns % TYPES[type_name][1]:
        type_name = NARROWER.get(type_name, "F16")
    return "F16" if columns % TYPES[type_name][1] else type_name


def mixed_types(mix: str, config: ModelConfig, architecture: str, names: Iterable[str]) -> dict[str, str]:
    """GGUF's name to type, of all matrices that the mixture speaks of, whatever the length of their rows."""
    names = sorted((name for name in names if name.endswith(".weight")), key=lambda name: (_layer(name), name))
    chooser = _Chooser.of(mix, config, architecture, names)
    return {name: chooser.choose(name) for name in names}


def _layer(name: str) -> int:
    _, _, rest = name.partition("blk.")
    number = rest.partition(".")[0]
    return int(number) if number.isdecimal() else -1


@dataclass(frozen=True)
class _Chooser:
    """values, downs: a tensor's place among those of its role, in the order of layers."""

    mix: str
    base: str
    layers: int
    experts: int
    shared: int  # heads that share a key
    is_70b: bool
    tied: bool
    values: Mapping[str, int]
    downs: Mapping[str, int]

    @classmethod
    def of(cls, mix: str, config: ModelConfig, architecture: str, names: list[str]) -> _Chooser:
        values = [name for name in names if part_of(name) in _VALUES]
        downs = [name for name in names if part_of(name).startswith("ffn_down")]
        experts = config.experts.count if config.experts else 0
        places = {name: _layer(name) if experts > 1 else i for i, name in enumerate(downs)}
        shared = config.num_heads // config.num_kv_heads if config.num_kv_heads else 0
        is_70b = architecture in ("llama", "qwen2") and config.num_layers == 80 and shared > 1
        tied = "output.weight" not in names
        return cls(
            *(mix, MIXES[mix][0], config.num_layers, experts, shared, is_70b, tied),
            *({name: i for i, name in enumerate(values)}, places),
        )

    def choose(self, name: str) -> str:
        part = part_of(name)
        if name == _KEPT:
            return "F16"
        if name == "output.weight" or (self.tied and name in _EMBEDDINGS):
            return "Q6_K"
        if name in self.values:
            return self._value(self.values[name])
        if part == "attn_k" and self.experts == 8:
            return "Q8_0"
        if name in self.downs:
            return self._down(self.downs[name])
        if part == "attn_output":
            return self._attention_output()
        return self.base

    def _value(self, i: int) -> str:
        if self.experts == 8:
            return "Q8_0"
        found = self.base
        if self.mix == "Q2_K":
            found = "Q4_K" if self.shared >= 4 else "Q3_K"
        elif self.mix == "Q3_K_M":
            found = "Q5_K" if i < 2 else "Q4_K"
        elif self.mix == "Q3_K_L" or (self.mix == "Q4_K_S" and i < 4):
            found = "Q5_K"
        elif self.mix in ("Q4_K_M", "Q5_K_M") and _often(i, len(self.values)):
            found = "Q6_K"
        return "Q5_K" if self.is_70b and found in ("Q3_K", "Q4_K") else found

    def _down(self, i: int) -> str:
        if self.mix == "Q3_K_M":
            return "Q5_K" if i < self.layers // 16 else "Q4_K"
        if self.mix in ("Q4_K_M", "Q5_K_M") and _often(i, self.layers):
            return "Q6_K"
        if self.mix == "Q4_K_S" and i < self.layers // 8:
            return "Q5_K"
        return {"Q2_K": "Q3_K", "Q3_K_L": "Q5_K"}.get(self.mix, self.base)

    def _attention_output(self) -> str:
        if self.experts == 8:
            wider = self.mix in ("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M")
            return "Q5_K" if wider else self.base
        return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(self.mix, self.base)


def _often(i: int, count: int) -> bool:
    """The outer eighths, and every third layer between."""
    return i < count // 8 or i >= 7 * count // 8 or (i - count // 8) % 3 == 2
