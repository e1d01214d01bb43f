"""How many bits each weight gets: `BITS[:GROUP]`, small floats, a named mixture, or a budget that `measure.py` spends.

Not here: rounding (`quantize.py`), running a model. Invariant: only matrices of a decoder's layers, of what these
are told of tokens, its embedding and its head are quantized; norms, biases, routers and all else stay as they are.

    4, 4:32, …        all layers at this width, and what layers are told of tokens. Embedding and head, which suffer
                      most from few bits: at least 6
    nvfp4, mxfp4, …   all layers in this mode of small floats; embedding and head at least 6 bits, as integers
    mixed_LOW_HIGH    LOW bits for most, HIGH where bits help most: values, the first and last layer, the down
                      projections of the outer eighths and of every third layer between; embedding and head at least 6
    measured:BPW      bits where they lower the divergence from the source most, BPW bits a weight in all
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from partita.checkpoint.base import Checkpoint
from partita.checkpoint.schemes.affine import BITS, GROUP_SIZES
from partita.errors import DataError
from partita.quantization import AFFINE, SMALL_FLOATS

DEFAULT_GROUP = 64
LEAST_EMBEDDING_BITS = 6
MEASURED_BITS = tuple(bits for bits in BITS if bits > 1)
"""Of a budget: a sign alone is for models that were trained with one."""
MIXTURES = {"mixed_2_6": (2, 6), "mixed_3_4": (3, 4), "mixed_3_6": (3, 6), "mixed_4_6": (4, 6)}
_LAYER = re.compile(r"\.layers\.(\d+)\.")
_EMBEDDINGS = ("embed_tokens.weight", "lm_head.weight")
_TOLD = ("embed_tokens_per_layer.weight", "per_layer_model_projection.weight")
_ROUTERS = (".gate.weight", ".gate.proj.weight", ".router.weight", ".router.proj.weight", ".shared_expert_gate.weight")
_OTHER_PARTS = ("vision", "audio", "visual", "multi_modal")
_TOGETHER = {
    **dict.fromkeys(("q_proj", "k_proj"), "qk"),
    **dict.fromkeys(("gate_proj", "up_proj", "w1", "w3"), "gate_up"),
    "w2": "down_proj",
}
_ATTENTION_GATES = (".self_attn.gate_proj.weight", ".self_attn.g_proj.weight")


@dataclass(frozen=True)
class Format:
    """mode: of `quantization.Packed`."""

    bits: int
    group_size: int
    mode: str = AFFINE

    def __str__(self) -> str:
        return f"{self.bits}-bit:{self.group_size}" if self.mode == AFFINE else self.mode.upper()

    @property
    def bits_per_weight(self) -> float:
        """With a scale and a bias of 16 bits for every group, or small floats' 8 bits."""
        return self.bits + (32 if self.mode == AFFINE else 8) / self.group_size

    def fitted(self, size: int) -> Format | None:
        """This format with the largest group up to its own that divides a row of `size`; None where none does."""
        if self.mode != AFFINE:
            return self if size % self.group_size == 0 else None
        for group in sorted(GROUP_SIZES, reverse=True):
            if group <= self.group_size and size % group == 0:
                return Format(self.bits, group)
        return None


@dataclass(frozen=True)
class Recipe:
    """What was asked for. low, high: bits; the same for a plain one. budget: bits a weight, for a measured one.

    names_group: whether the size of groups was said, and is not merely the usual one. mode: of small floats, with low
    bits; what suffers most from few of them gets integers of high ones.
    """

    text: str
    low: int
    high: int
    group_size: int
    names_group: bool
    budget: float | None = None
    mode: str = AFFINE


Formats = Mapping[str, Format]
"""Weight's name to its format. A weight that is not in it stays as it is stored."""


def parse_recipe(text: str) -> Recipe:
    """DataError, in one line, for what is no recipe."""
    wanted = text.lower()
    name, _, group = wanted.partition(":")
    if name == "measured":
        value, _, group = group.partition(":")
        budget = _budget(text, value)
        return Recipe(text, min(MEASURED_BITS), max(MEASURED_BITS), _group(text, group), True, budget)
    if wanted in SMALL_FLOATS:
        bits, _ = SMALL_FLOATS[wanted]
        return Recipe(text, bits, bits, DEFAULT_GROUP, True, mode=wanted)
    low, high = MIXTURES.get(name, (0, 0))
    if name in map(str, BITS):  # numbers of thousands of digits are texts that cannot become numbers
        low = high = int(name)
    if not low:
        raise DataError(
            f"unknown `quantize` {text!r}; expected BITS[:GROUP] ({', '.join(map(str, BITS))} bits in groups of "
            f"{', '.join(map(str, GROUP_SIZES))}), {', '.join((*SMALL_FLOATS, *MIXTURES))}, or measured:BPW such as "
            "measured:4.5",
            field="quantize",
        )
    return Recipe(text, low, high, _group(text, group), bool(group))


def _group(text: str, group: str) -> int:
    if not group and not text.endswith(":"):
        return DEFAULT_GROUP
    if group not in map(str, GROUP_SIZES):
        sizes = ", ".join(map(str, GROUP_SIZES))
        raise DataError(f"`quantize` {text!r}: the group size must be one of {sizes}, got {group!r}", field="quantize")
    return int(group)


def _budget(text: str, value: str) -> float:
    try:
        budget = float(value)
    except ValueError:
        budget = 0.0
    if not 2 <= budget <= 10:
        raise DataError(
            f"`quantize` {text!r}: bits a weight must be from 2 to 10, such as measured:4.5, got {value!r}",
            field="quantize",
        )
    return budget


def quantizable(checkpoint: Checkpoint, names: tuple[str, ...] | None = None) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight that a recipe may quantize, in the checkpoint's order."""
    found = {name: checkpoint.shape(name) for name in (checkpoint.names() if names is None else names)}
    return {name: shape for name, shape in found.items() if _is_matrix(name, shape)}


def _is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    known = layer_of(name) is not None or name.endswith((*_EMBEDDINGS, *_TOLD))
    other = f".{name}".endswith(_ROUTERS) or "norm" in _module(name) or any(part in name for part in _OTHER_PARTS)
    return known and not other and len(shape) >= 2 and name.endswith(".weight") and shape[-1] % min(GROUP_SIZES) == 0


def layer_of(name: str) -> int | None:
    match = _LAYER.search(f".{name}")
    return None if match is None else int(match[1])


def is_embedding(name: str) -> bool:
    """The embedding or the head."""
    return name.endswith(_EMBEDDINGS)


def part_of(name: str) -> str:
    """What a weight is measured together with, and the kind it is summed up under in reports, less its layer."""
    if is_embedding(name):
        return "embedding and head"
    if name.endswith(_ATTENTION_GATES):
        return "attention gate"
    return _TOGETHER.get(_module(name), _module(name))


def _module(name: str) -> str:
    """The last part but the tensor's own: "q_proj"; of a name without parts, all of it."""
    return name.split(".")[-2] if "." in name else name


def formats(recipe: Recipe, weights: Mapping[str, tuple[int, ...]]) -> dict[str, Format]:
    """The format of every weight by a recipe that measures nothing."""
    layers = 1 + max((layer_of(name) or 0 for name in weights), default=0)
    chosen: dict[str, Format] = {}
    for name, shape in weights.items():
        fitted = _format(recipe, name, layers).fitted(shape[-1])
        if fitted is not None:
            chosen[name] = fitted
    return chosen


def _format(recipe: Recipe, name: str, layers: int) -> Format:
    if recipe.mode == AFFINE or (is_embedding(name) and recipe.low < LEAST_EMBEDDING_BITS):
        return Format(_bits(recipe, name, layers), recipe.group_size)
    return Format(*SMALL_FLOATS[recipe.mode], recipe.mode)


def _bits(recipe: Recipe, name: str, layers: int) -> int:
    if is_embedding(name):
        return max(recipe.high, LEAST_EMBEDDING_BITS)
    layer, part = layer_of(name), part_of(name)
    if layer is None:
        return recipe.low
    eighth = max(layers // 8, 1)
    outer = layer < eighth or layer >= layers - eighth
    often = part == "down_proj" and (outer or (layer - eighth) % 3 == 2)
    return recipe.high if part == "v_proj" or often or layer in (0, layers - 1) else recipe.low
