"""Small valid models of every form that is read, to be damaged: built from bytes, so that any number can be wrong.

`write_all` makes the forms; `gguf_bytes` and `safetensors_bytes` write any header, a valid one or not.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_LAYOUT = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", I64: "q", F64: "d"}
# id: (values, bytes) of a block
BLOCKS = {
    0: (1, 4),
    1: (1, 2),
    2: (32, 18),
    3: (32, 20),
    6: (32, 22),
    7: (32, 24),
    8: (32, 34),
    10: (256, 84),
    11: (256, 110),
    12: (256, 144),
    13: (256, 176),
    14: (256, 210),
    20: (32, 18),
    30: (1, 2),
    39: (32, 17),
}
HEADS, KV_HEADS, VOCABULARY, EXPERTS = 4, 2, 32, 3

Key = tuple[str, int, Any]  # name, type, value; an array's value is (item type, items)
Tensor = tuple[str, tuple[int, ...], int, int]  # name, dimensions in the file's order, type, offset


def gguf_value(kind: int, value: Any) -> bytes:
    if kind == STRING:
        raw = value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")
        return struct.pack("<Q", len(raw)) + raw
    if kind == ARRAY:
        item, items = value
        return struct.pack("<IQ", item, len(items)) + b"".join(gguf_value(item, one) for one in items)
    return struct.pack("<" + _LAYOUT[kind], value)


def gguf_bytes(keys: Iterable[Key], tensors: Iterable[Tensor], data: bytes, version: int = 3) -> bytes:
    """A whole file; nothing is checked."""
    keys, tensors = list(keys), list(tensors)
    parts = [b"GGUF", struct.pack("<IQQ", version, len(tensors), len(keys))]
    for name, kind, value in keys:
        parts += [gguf_value(STRING, name), struct.pack("<I", kind), gguf_value(kind, value)]
    for name, dimensions, kind, offset in tensors:
        sizes = struct.pack(f"<{len(dimensions)}Q", *dimensions)
        parts += [gguf_value(STRING, name), struct.pack("<I", len(dimensions)), sizes, struct.pack("<IQ", kind, offset)]
    header = b"".join(parts)
    return header + bytes(-len(header) % 32) + data


def place(shapes: Iterable[tuple[str, tuple[int, ...], int]], seed: int = 0) -> tuple[list[Tensor], bytes]:
    """Tensors one after the other with random contents whose float16 fields are moderate numbers."""
    rng, tensors, data = np.random.default_rng(seed), [], b""
    for name, dimensions, kind in shapes:
        values, size = BLOCKS[kind]
        count = int(np.prod(dimensions)) // values
        if kind == 0:
            sign = -1 if name.endswith("ssm_a") else 1  # what decays is below 0
            raw = (sign * rng.uniform(0.5, 2, count)).astype(np.float32).tobytes()
        else:  # bytes below 0x40 in every place: no float16 of any block is infinite
            raw = rng.integers(0, 0x40, count * size).astype(np.uint8).tobytes()
        tensors.append((name, dimensions, kind, len(data)))
        data += raw + bytes(-len(raw) % 32)
    return tensors, data


# ---------------------------------------------------------------- GGUF


def byte_level_keys() -> list[Key]:
    tokens = [*"abcdefgh", "ab", "cd", "abcd", "Ġ", "Ċ", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens += [f"[unused{i}]" for i in range(VOCABULARY - len(tokens))]
    types = [3 if token.startswith("<|") else 1 for token in tokens]
    return [
        ("tokenizer.ggml.model", STRING, "gpt2"),
        ("tokenizer.ggml.pre", STRING, "smollm"),
        ("tokenizer.ggml.tokens", ARRAY, (STRING, tokens)),
        ("tokenizer.ggml.token_type", ARRAY, (I32, types)),
        ("tokenizer.ggml.merges", ARRAY, (STRING, ["a b", "c d", "ab cd"])),
        ("tokenizer.ggml.bos_token_id", U32, 13),
        ("tokenizer.ggml.eos_token_id", U32, 15),
        ("tokenizer.ggml.add_bos_token", BOOL, False),
        ("tokenizer.chat_template", STRING, "{% for m in messages %}{{ m.content }}{% endfor %}"),
    ]


def sentence_keys(*, with_bytes: bool = False) -> list[Key]:
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", *"abcdefgh", "▁", "▁a", "ab", "cd", "abcd", "<start_of_turn>"]
    tokens += [f"<0x{i:02X}>" for i in range(256)] if with_bytes else [f"x{i}" for i in range(VOCABULARY - len(tokens))]
    types = [3, 3, 3, 2] + [6 if token.startswith("<0x") else 1 for token in tokens[4:]]
    return [
        ("tokenizer.ggml.model", STRING, "llama"),
        ("tokenizer.ggml.tokens", ARRAY, (STRING, tokens)),
        ("tokenizer.ggml.scores", ARRAY, (F32, [-float(i) for i in range(len(tokens))])),
        ("tokenizer.ggml.token_type", ARRAY, (I32, types)),
        ("tokenizer.ggml.bos_token_id", U32, 2),
        ("tokenizer.ggml.eos_token_id", U32, 1),
        ("tokenizer.ggml.unknown_token_id", U32, 3),
        ("tokenizer.ggml.add_space_prefix", BOOL, False),
    ]


def model_keys(architecture: str, layers: int, width: int) -> list[Key]:
    return [
        ("general.architecture", STRING, architecture),
        ("general.alignment", U32, 32),
        (f"{architecture}.block_count", U32, layers),
        (f"{architecture}.context_length", U32, 64),
        (f"{architecture}.embedding_length", U32, width),
        (f"{architecture}.feed_forward_length", U32, width),
        (f"{architecture}.attention.head_count", U32, HEADS),
        (f"{architecture}.attention.head_count_kv", ARRAY, (I32, [KV_HEADS] * layers)),
        (f"{architecture}.attention.layer_norm_rms_epsilon", F32, 1e-5),
        (f"{architecture}.attention.sliding_window", U32, 16),
        (f"{architecture}.attention.key_length", U32, width // HEADS),
        (f"{architecture}.rope.freq_base", F32, 50000.0),
    ]


def expert_keys(architecture: str) -> list[Key]:
    return [
        (f"{architecture}.expert_count", U32, EXPERTS),
        (f"{architecture}.expert_used_count", U32, 2),
        (f"{architecture}.expert_feed_forward_length", U32, 32),
    ]


Shape = tuple[str, tuple[int, ...], int]  # name, dimensions in the file's order, type


def outer_shapes(width: int, rows: int = VOCABULARY, *, head: bool = False) -> list[Shape]:
    found: list[Shape] = [("token_embd.weight", (width, rows), 8), ("output_norm.weight", (width,), 0)]
    return [*found, ("output.weight", (width, VOCABULARY), 8)] if head else found


def model_shapes(
    layers: int, width: int, types: list[int], more: Iterable[str] = (), cut: int = 1, vocabulary: int = VOCABULARY
) -> list[Shape]:
    """Every tensor of a small model; the matrices take `types` in turn. cut: what their rows are divided by."""
    kv = width // HEADS * KV_HEADS
    matrices = {"attn_q": width, "attn_k": kv, "attn_v": kv, "attn_output": width, "ffn_gate": width, "ffn_up": width}
    found = outer_shapes(width, vocabulary)
    for layer in range(layers):
        found += [(f"blk.{layer}.{name}.weight", (width,), 0) for name in ("attn_norm", "ffn_norm", *more)]
        for i, (name, rows) in enumerate((matrices | {"ffn_down": width}).items()):
            found.append((f"blk.{layer}.{name}.weight", (width, rows // cut), types[(i + layer) % len(types)]))
    return found


def gpt_oss_shapes(width: int) -> list[Shape]:
    """One layer of experts in 4-bit floats, biases everywhere, one sink logit a head."""
    kv, found = width // HEADS * KV_HEADS, outer_shapes(width, head=True)
    for name, rows in {"attn_q": width, "attn_k": kv, "attn_v": kv, "attn_output": width}.items():
        found += [(f"blk.0.{name}.weight", (width, rows), 30), (f"blk.0.{name}.bias", (rows,), 0)]
    for name in ("gate", "up", "down"):
        found.append((f"blk.0.ffn_{name}_exps.weight", (width, 32, EXPERTS), 39))
        found.append((f"blk.0.ffn_{name}_exps.bias", (32, EXPERTS), 0))
    found += [("blk.0.ffn_gate_inp.weight", (width, EXPERTS), 0), ("blk.0.ffn_gate_inp.bias", (EXPERTS,), 0)]
    found += [(f"blk.0.{name}.weight", (width,), 0) for name in ("attn_norm", "post_attention_norm")]
    return [*found, ("blk.0.attn_sinks.weight", (HEADS,), 0)]


def recurrent_shapes(width: int) -> list[Shape]:
    """One layer with the gated delta rule, four value heads for two of keys, and one that attends."""
    found = outer_shapes(width)
    inner, heads, kv = 128, 4, width // HEADS * KV_HEADS
    delta = {"attn_qkv": inner + 128, "attn_gate": inner, "ssm_alpha": heads, "ssm_beta": heads}
    attention = {"attn_q": 2 * width, "attn_k": kv, "attn_v": kv, "attn_output": width}
    mlp = {"ffn_gate": width, "ffn_up": width, "ffn_down": width}
    for layer, matrices in enumerate((delta | mlp, attention | mlp)):
        found += [(f"blk.{layer}.{name}.weight", (width,), 0) for name in ("attn_norm", "post_attention_norm")]
        found += [(f"blk.{layer}.{name}.weight", (width, rows), 8) for name, rows in matrices.items()]
    found += [(f"blk.1.{name}.weight", (width // HEADS,), 0) for name in ("attn_q_norm", "attn_k_norm")]
    found += [("blk.0.ssm_conv1d.weight", (4, inner + 128), 0), ("blk.0.ssm_out.weight", (inner, width), 8)]
    vectors = {"ssm_norm.weight": 32, "ssm_dt.bias": heads, "ssm_a": heads}
    return [*found, *((f"blk.0.{name}", (size,), 0) for name, size in vectors.items())]


def recurrent_keys() -> list[Key]:
    delta = {"conv_kernel": 4, "state_size": 32, "group_count": 2, "time_step_rank": 4, "inner_size": 128}
    keys = [(f"qwen35.ssm.{key}", U32, value) for key, value in delta.items()]
    return [*keys, ("qwen35.full_attention_interval", U32, 2)]


def gguf_forms() -> dict[str, tuple[list[Key], list[Tensor], bytes]]:
    """Whole models of 32 columns, one with experts; and two of 256 whose rows are cut, for types of large blocks."""
    llama = [*model_shapes(1, 32, [2, 3, 6, 7, 8, 1, 30])]
    factors = [*model_shapes(1, 32, [8]), ("rope_freqs.weight", (4,), 0)]
    kinds = model_shapes(2, 256, [12, 13, 14, 10, 11, 20, 0], cut=16)
    sentences = sentence_keys(with_bytes=True)
    own = ["post_attention_norm", "post_ffw_norm"]
    gemma = model_shapes(1, 256, [2, 12, 30], own, cut=16, vocabulary=len(sentences[1][2][1]))
    yarn = [("gpt-oss.rope.scaling.type", STRING, "yarn"), ("gpt-oss.rope.scaling.factor", F32, 32.0)]
    yarn.append(("gpt-oss.rope.scaling.original_context_length", U32, 4096))
    recurrent = [*model_keys("qwen35", 2, 32), *recurrent_keys(), *byte_level_keys()]
    oss = [*model_keys("gpt-oss", 1, 32), *expert_keys("gpt-oss"), *yarn, *byte_level_keys()]
    return {
        "llama": ([*model_keys("llama", 1, 32), *byte_level_keys()], *place(llama)),
        "factors": ([*model_keys("llama", 1, 32), *byte_level_keys()], *place(factors)),
        "experts": (oss, *place(gpt_oss_shapes(32))),
        "kinds": ([*model_keys("llama", 2, 256), *sentence_keys()], *place(kinds)),
        "recurrent": (recurrent, *place(recurrent_shapes(32))),
        "gemma": ([*model_keys("gemma3", 1, 256), *sentences], *place(gemma)),
    }


# ---------------------------------------------------------------- folders


def safetensors_bytes(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + data


def stored(tensors: dict[str, tuple[str, tuple[int, ...]]], seed: int = 0) -> bytes:
    """A safetensors file. tensors: name to (dtype by safetensors' name, shape)."""
    sizes = {"BOOL": 1, "U8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F16": 2, "BF16": 2, "I64": 8, "U32": 4, "F32": 4}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + int(np.prod(shape)) * sizes[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    data = np.random.default_rng(seed).integers(0, 0x40, end).astype(np.uint8).tobytes()
    return safetensors_bytes(header, data)


CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 32,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    },
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "eos_token_id": [5, 7],
}
GEMMA: dict[str, Any] = CONFIG | {
    "model_type": "gemma3_text",
    "architectures": ["Gemma3ForCausalLM"],
    "vocab_size": VOCABULARY + 1,
    "head_dim": 16,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 16,
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention"],
    "rope_scaling": None,
    "rope_local_base_freq": 10000.0,
}


def tokenizer_json() -> dict[str, Any]:
    keys = {name: value for name, _, value in byte_level_keys()}
    tokens = keys["tokenizer.ggml.tokens"][1]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [{"id": i, "content": token, **flags, "special": True} for i, token in enumerate(tokens) if "|" in token]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "vocab": {token: i for i, token in enumerate(tokens)}, "merges": [["a", "b"], ["c", "d"]]}
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": level,
        "post_processor": level,
        "decoder": level,
        "model": model,
    }


def sentence_json() -> dict[str, Any]:
    """The kind that Llama 2 and Gemma have: spaces become a letter, unknown characters their bytes."""
    tokens = {name: value for name, _, value in sentence_keys(with_bytes=True)}["tokenizer.ggml.tokens"][1]
    replace = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    steps = [replace, {"type": "ByteFallback"}, {"type": "Fuse"}]
    model = {"type": "BPE", "unk_token": "<unk>", "byte_fallback": True, "fuse_unk": True}
    model |= {"vocab": {token: i for i, token in enumerate(tokens)}, "merges": ["▁ a", "a b", "c d", "ab cd"]}
    return tokenizer_json() | {
        "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}]},
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "a+"}, "behavior": "Isolated", "invert": False},
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [*steps, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": model,
    }


def sentencepiece_bytes() -> bytes:
    from partita.text import sentencepiece_model as proto

    keys = {name: value for name, _, value in sentence_keys()}
    pieces, types = keys["tokenizer.ggml.tokens"][1], keys["tokenizer.ggml.token_type"][1]
    specs = proto.bpe_specs(types)
    return proto.write(proto.Model(pieces, keys["tokenizer.ggml.scores"][1], types, *specs), space_prefix=False)


def layer(i: int, dtype: str, more: Iterable[str] = ()) -> dict[str, tuple[str, tuple[int, ...]]]:
    """A whole layer of the configs above."""
    attention = {"q": (64, 64), "k": (32, 64), "v": (32, 64), "o": (64, 64)}
    found: dict[str, tuple[str, tuple[int, ...]]] = {
        f"self_attn.{name}_proj": (dtype, shape) for name, shape in attention.items()
    }
    found |= {f"mlp.{name}_proj": (dtype, (64, 64)) for name in ("gate", "up", "down")}
    found |= dict.fromkeys(("input_layernorm", "post_attention_layernorm", *more), ("F32", (64,)))
    return {f"model.layers.{i}.{name}.weight": value for name, value in found.items()}


OUTER = {"model.embed_tokens.weight": ("BF16", (32, 64)), "model.norm.weight": ("F32", (64,))}


def packed(name: str, rows: int, columns: int, bits: int, group: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    scales = ("F16", (rows, columns // group))
    return {f"{name}.weight": ("U32", (rows, columns * bits // 32)), f"{name}.scales": scales, f"{name}.biases": scales}


def _single(folder: Path) -> None:
    more = {"flag": ("BOOL", (3,)), "odd": ("I64", (2, 3)), "none": ("F32", (0,))}
    (folder / "model.safetensors").write_bytes(stored(OUTER | layer(0, "BF16") | layer(1, "F16") | more))
    _json(folder, "config.json", CONFIG)
    _json(folder, "tokenizer.json", tokenizer_json())
    settings = {"eos_token": "<|im_end|>", "bos_token": {"content": "<|endoftext|>"}, "add_bos_token": False}
    settings["added_tokens_decoder"] = {"13": {"content": "<|endoftext|>", "special": True}}
    _json(folder, "tokenizer_config.json", settings)
    _json(folder, "generation_config.json", {"eos_token_id": [13, 15], "do_sample": True})


def _sharded(folder: Path) -> None:
    table, extra = {}, {"model.embed_tokens.weight": ("BF16", (VOCABULARY + 1, 64))}
    for i in range(2):
        norms = ("pre_feedforward_layernorm", "post_feedforward_layernorm")
        file, tensors = f"model-0000{i + 1}-of-00002.safetensors", layer(i, "F32", norms) | (OUTER | extra if i else {})
        tensors |= {f"model.layers.{i}.self_attn.{name}_norm.weight": ("F32", (16,)) for name in "qk"}
        (folder / file).write_bytes(stored(tensors, i))
        table |= dict.fromkeys(tensors, file)
    _json(folder, "model.safetensors.index.json", {"metadata": {"total_size": 1}, "weight_map": table})
    _json(folder, "config.json", GEMMA)
    (folder / "tokenizer.model").write_bytes(sentencepiece_bytes())
    _json(folder, "special_tokens_map.json", {"bos_token": "<bos>", "additional_special_tokens": ["<start_of_turn>"]})
    _json(folder, "added_tokens.json", {"<extra>": VOCABULARY})
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")


def _quantized(folder: Path) -> None:
    tensors = packed("model.a", 4, 128, 4, 64) | packed("model.b", 4, 64, 6, 32) | packed("model.c", 2, 64, 3, 64)
    (folder / "model.safetensors").write_bytes(stored(tensors | {"model.norm.weight": ("BF16", (64,))}))
    block = {"group_size": 64, "bits": 4, "mode": "affine", "model.b": {"bits": 6, "group_size": 32}}
    block["model.c"] = {"bits": 3, "group_size": 64}
    _json(folder, "config.json", CONFIG | {"quantization": block, "quantization_config": block})
    _json(folder, "tokenizer.json", sentence_json())


def _floats(folder: Path) -> None:
    weights = {"model.a.weight": ("F8_E4M3", (200, 130)), "model.b.weight": ("F8_E5M2", (2, 3, 130))}
    scales = {"model.a.weight_scale_inv": ("F32", (2, 2)), "model.b.weight_scale": ("BF16", (2, 3, 1))}
    (folder / "model.safetensors").write_bytes(stored(weights | scales | {"model.a.input_scale": ("F32", (1,))}))
    _json(
        folder,
        "config.json",
        CONFIG | {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
    )
    _json(folder, "tokenizer.json", tokenizer_json())


def _mlx_floats(folder: Path) -> None:
    """Every mode of small floats, by the block, by its own table and by its tensors, one with a global scale."""
    forms = {"a": ("nvfp4", 4, 16), "b": ("mxfp4", 4, 32), "c": ("mxfp8", 8, 32)}
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {"model.a.global_scale": ("F32", ())}
    block: dict[str, Any] = {"group_size": 16, "bits": 4, "mode": "nvfp4"}
    for module, (mode, bits, group) in forms.items():
        tensors[f"model.{module}.weight"] = ("U32", (4, 64 * bits // 32))
        tensors[f"model.{module}.scales"] = ("U8", (4, 64 // group))
        if mode == "mxfp4":
            block[f"model.{module}"] = {"group_size": group, "bits": bits, "mode": mode}
    (folder / "model.safetensors").write_bytes(stored(tensors))
    _json(folder, "config.json", CONFIG | {"quantization": block, "quantization_config": block})
    _json(folder, "tokenizer.json", tokenizer_json())


FOLDERS: dict[str, Callable[[Path], None]] = {
    "single": _single,
    "sharded": _sharded,
    "quantized": _quantized,
    "floats": _floats,
    "mlx_floats": _mlx_floats,
}


WHOLE = ("llama", "factors", "experts", "recurrent", "single", "sharded")  # they hold everything that a decoder needs


def _json(folder: Path, name: str, value: Any) -> None:
    (folder / name).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def write_all(root: Path, schemes: Mapping[str, Callable[[], Any]] | None = None) -> list[Path]:
    """Every form under `root`: .gguf files and folders. schemes: the forms of `fuzz_schemes`, where they are wanted."""
    made = []
    for name, form in gguf_forms().items():
        path = root / f"{name}.gguf"
        path.write_bytes(gguf_bytes(*form))
        made.append(path)
    for name, make in FOLDERS.items():
        (root / name).mkdir()
        make(root / name)
        made.append(root / name)
    for name, form in (schemes or {}).items():
        tensors, block = form()
        (root / name).mkdir()
        (root / name / "model.safetensors").write_bytes(save(tensors))
        _json(root / name, "config.json", CONFIG | {"quantization_config": block})
        _json(root / name, "tokenizer.json", tokenizer_json())
        made.append(root / name)
    return made
