"""GGUF files of random weights in the shape of Llamas and Qwens, in sizes that people run: to measure speed, memory and
start-up with.

Not here: models that say anything. Invariants: the same shape gives the same bytes; blocks are drawn as blocks, no
number is quantized, so that writing takes the time of writing and the memory of one piece; scales are such that a
matrix keeps the size of what it multiplies, so that nothing overflows and no number is denormal.

Projections are Q4_0. The embedding, which is the head too where they are tied, is Q6_K, or Q8_0 where blocks of 256 do
not divide its rows. The vocabulary is byte-level BPE with as many merges as tokens: reading it takes what it takes for
a real one, and any text can be encoded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from partita.checkpoint.gguf.architectures import ARCHITECTURES
from partita.files.atomic import whole_file
from partita.model.families.parse import family, parse
from partita.model.weights import CONVOLUTIONS, WeightSpec, weights
from partita.text.engines import byte_alphabet
from partita.text.sentencepiece_model import CONTROL, NORMAL

from .file import TYPES, GgufWriter, Typed, size
from .metadata import FILE_TYPES, QUANTIZATION_VERSION, architecture_of, check_said, model_keys
from .recurrent import sections
from .write import layer_names, name_in_gguf

_FORGETTING = -0.02  # of decays, as the file has them
_SEED = 20
_PIECE = 1 << 22  # values
_BLOCKS = {
    "Q4_0": np.dtype([("scale", "<f2"), ("integers", "u1", (16,))]),
    "Q8_0": np.dtype([("scale", "<f2"), ("integers", "i1", (32,))]),
    "Q6_K": np.dtype([("low", "u1", (128,)), ("high", "u1", (64,)), ("scales", "i1", (16,)), ("scale", "<f2")]),
}
_Q6_K_SCALE = 8  # of a group, in units of the block's
_DEVIATIONS = {"Q4_0": 4.61, "Q8_0": 73.9, "Q6_K": 18.5 * _Q6_K_SCALE}
"""Of a block's values where its integers are uniform and its scale is 1."""
_CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """Of a decoder. tied: the head is the embedding. model_type: "llama", or another family with the same fields."""

    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tied: bool
    positions: int = 131072
    model_type: str = "llama"

    @property
    def architecture(self) -> str:
        """GGUF's name."""
        return architecture_of(self.config())[0]

    def config(self) -> dict[str, Any]:
        """As config.json has it."""
        return {
            "model_type": self.model_type,
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden_size,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.intermediate_size,
            "vocab_size": self.vocab_size,
            "tie_word_embeddings": self.tied,
            "max_position_embeddings": self.positions,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "hidden_act": "silu",
        }


@dataclass(frozen=True)
class HybridShape(Shape):
    """Of Qwen3.5: three layers in four keep a matrix a value head, of head_dim / 2 numbers a side."""

    model_type: str = "qwen3_5_text"
    key_heads: int = 16
    value_heads: int = 32

    def config(self) -> dict[str, Any]:
        heads = {"linear_num_key_heads": self.key_heads, "linear_num_value_heads": self.value_heads}
        width = self.head_dim // 2
        widths = {"linear_key_head_dim": width, "linear_value_head_dim": width, "linear_conv_kernel_dim": 4}
        return {**super().config(), **heads, **widths, "partial_rotary_factor": 0.25}


SHAPES: dict[str, Shape] = {  # of SmolLM2-135M, and of Llama 3.2 1B, 3.2 3B and 3.1 8B
    "135m": Shape(30, 576, 9, 3, 64, 1536, 49152, tied=True),
    "1b": Shape(16, 2048, 32, 8, 64, 8192, 128256, tied=True),
    "3b": Shape(28, 3072, 24, 8, 128, 8192, 128256, tied=True),
    "8b": Shape(32, 4096, 32, 8, 128, 14336, 128256, tied=False),
    # of Qwen3.5-4B, and the same with attention in every layer
    "hybrid-4b": HybridShape(32, 2560, 16, 4, 256, 9216, 248320, tied=True),
    "dense-4b": Shape(32, 2560, 16, 4, 256, 9216, 248320, tied=True, model_type="qwen3"),
}


def shape_bytes(shape: Shape) -> int:
    """Of the tensors in its file."""
    return sum(size(_type(spec), _stored(spec)) for spec in _specs(shape))


def write_shape(shape: Shape, path: Path, name: str = "random") -> int:
    """Write the file, or replace it; its bytes. name: general.name. DataError: the disk refuses."""
    config, architecture = parse(shape.config()), shape.architecture
    keys = {
        "general.architecture": Typed("str", architecture),
        "general.type": Typed("str", "model"),
        "general.name": Typed("str", name),
        "general.file_type": Typed("u32", FILE_TYPES["Q4_0"]),
        "general.quantization_version": Typed("u32", QUANTIZATION_VERSION),
    }
    keys |= model_keys(config, architecture)[0]
    row = layer_names(ARCHITECTURES[architecture])
    if (mrope := sections(shape.config(), ARCHITECTURES[architecture])) is not None:
        keys[f"{architecture}.rope.dimension_sections"] = Typed("i32", mrope, many=True)
    planned = [(name_in_gguf(spec.name, row), spec) for spec in _specs(shape)]
    check_said(config, keys, {name: _stored(spec) for name, spec in planned}, {})
    keys |= _vocabulary(shape.vocab_size)
    with whole_file(path) as temporary, open(temporary, "wb") as file:
        writer = GgufWriter(file, keys, [(name, _stored(spec)) for name, spec in planned])
        for i, (_, spec) in enumerate(planned):
            writer.write(_type(spec), _pieces(spec, np.random.default_rng([_SEED, i])))
        return writer.finish()


def _specs(shape: Shape) -> Iterator[WeightSpec]:
    return weights(parse(shape.config()), family(shape.config()).names)


def _stored(spec: WeightSpec) -> tuple[int, ...]:
    """The shape that the file has: of a convolution without the axis of length 1."""
    return tuple(n for n in spec.shape if n > 1) if spec.kind in CONVOLUTIONS else spec.shape


def _type(spec: WeightSpec) -> str:
    if len(spec.shape) == 1 or spec.kind in CONVOLUTIONS:
        return "F32"
    if spec.kind in ("a", "b"):
        return "Q8_0"
    if spec.kind not in ("embedding", "head"):
        return "Q4_0"
    return "Q8_0" if spec.shape[-1] % TYPES["Q6_K"][1] else "Q6_K"


def _pieces(spec: WeightSpec, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """A tensor's blocks. Ones for a norm; layers with a state forget a little with every token."""
    kind = _type(spec)
    if kind == "F32":
        value = _FORGETTING if spec.kind == "a_log" else spec.shape[-1] ** -0.5 if spec.kind in CONVOLUTIONS else 1.0
        yield np.full(_stored(spec), value, "<f4")
        return
    total = size(kind, spec.shape) // TYPES[kind][2]
    step = _PIECE // TYPES[kind][1]
    scale = spec.shape[-1] ** -0.5 / _DEVIATIONS[kind]
    for start in range(0, total, step):
        yield _blocks(kind, min(step, total - start), scale, rng)


def _blocks(kind: str, count: int, scale: float, rng: np.random.Generator) -> np.ndarray:
    """Random blocks (count,). Signs of scales are random, since 4 bits have one more integer below zero than above."""
    layout = _BLOCKS[kind]
    blocks = np.frombuffer(bytearray(rng.bytes(count * layout.itemsize)), layout)
    signs = rng.integers(0, 2, count, np.int8) * 2 - 1
    blocks["scale"] = signs * np.float32(scale)
    if kind == "Q6_K":
        blocks["scales"] = _Q6_K_SCALE
    return blocks


def _vocabulary(count: int) -> dict[str, Typed]:
    """Keys of a vocabulary: every byte, every token so far with every byte behind it, in turn, then control tokens."""
    letters = list(byte_alphabet())
    tokens, merges = list(letters), list[str]()
    for i in range(count - len(letters) - len(_CONTROLS)):
        first, second = tokens[i // len(letters)], letters[i % len(letters)]
        tokens.append(first + second)
        merges.append(f"{first} {second}")
    types = [NORMAL] * len(tokens) + [CONTROL] * len(_CONTROLS)
    end, _, turn = range(len(tokens), len(tokens) + len(_CONTROLS))
    return {
        "tokenizer.ggml.model": Typed("str", "gpt2"),
        "tokenizer.ggml.pre": Typed("str", "smollm"),
        "tokenizer.ggml.tokens": Typed("str", [*tokens, *_CONTROLS], many=True),
        "tokenizer.ggml.token_type": Typed("i32", types, many=True),
        "tokenizer.ggml.merges": Typed("str", merges, many=True),
        "tokenizer.ggml.bos_token_id": Typed("u32", end),
        "tokenizer.ggml.eos_token_id": Typed("u32", turn),
        "tokenizer.ggml.add_bos_token": Typed("bool", False),
        "tokenizer.chat_template": Typed("str", _TEMPLATE),
    }
