"""Tiny GGUF files for tests: whole models written by the gguf package, and headers written by hand."""

import struct
from pathlib import Path

import gguf
import numpy as np


class Llama:
    """A tiny llama model as a GGUF file."""

    heads, kv_heads, head_dim, width, inner, layers, vocabulary = 4, 2, 8, 32, 64, 2, 32
    architecture = "llama"

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes = {"token_embd": (self.vocabulary, self.width), "output_norm": (self.width,)}
        for i in range(self.layers):
            shapes |= {f"blk.{i}.{name}": shape for name, shape in self.layer_shapes(q, kv).items()}
        self.tensors = {f"{name}.weight": rng.standard_normal(s).astype(np.float32) for name, s in shapes.items()}

    def layer_shapes(self, q: int, kv: int) -> dict[str, tuple[int, ...]]:
        w, f = self.width, self.inner
        return {
            "attn_norm": (w,),
            "attn_q": (q, w),
            "attn_k": (kv, w),
            "attn_v": (kv, w),
            "attn_output": (w, q),
            "ffn_norm": (w,),
            "ffn_gate": (f, w),
            "ffn_up": (f, w),
            "ffn_down": (w, f),
        }

    def keys(self, writer: gguf.GGUFWriter) -> None:
        writer.add_block_count(self.layers)
        writer.add_context_length(64)
        writer.add_embedding_length(self.width)
        writer.add_feed_forward_length(self.inner)
        writer.add_head_count(self.heads)
        writer.add_head_count_kv(self.kv_heads)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_freq_base(50000.0)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_token_list(["a", "é", "</s>"])

    def write(self, path: Path, more=None, types=None) -> Path:
        writer = gguf.GGUFWriter(path, self.architecture)
        self.keys(writer)
        if more:
            more(writer)
        for name, value in self.tensors.items():
            kind = (types or {}).get(name)
            writer.add_tensor(name, gguf.quantize(value, kind) if kind else value, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


class Gemma3(Llama):
    architecture, layers = "gemma3", 7

    def layer_shapes(self, q: int, kv: int) -> dict[str, tuple[int, ...]]:
        w, d = self.width, self.head_dim
        norms = {"attn_q_norm": (d,), "attn_k_norm": (d,), "post_attention_norm": (w,), "post_ffw_norm": (w,)}
        return super().layer_shapes(q, kv) | norms

    def keys(self, writer: gguf.GGUFWriter) -> None:
        super().keys(writer)
        writer.add_key_length(self.head_dim)
        writer.add_value_length(self.head_dim)
        writer.add_sliding_window(16)


def header(tensors=(), keys=(), version=3, counts=None) -> bytes:
    """A hand-written file: keys are raw (name, bytes), tensors (name, dims, type, offset); 64 bytes of data."""

    def text(value: bytes) -> bytes:
        return struct.pack("<Q", len(value)) + value

    counts = counts or (len(tensors), len(keys))
    out = b"GGUF" + struct.pack("<IQQ", version, *counts)
    out += b"".join(text(name) + value for name, value in keys)
    for name, dims, kind, offset in tensors:
        out += text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
    return out + bytes(-len(out) % 32) + bytes(64)
