"""What tests of mistakes share: a tiny GGUF model, and a question to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTEXT = 64
Mistake = Callable[..., str]


def byte_letters() -> list[str]:
    """The 256 letters that byte-level vocabularies write bytes with: printable ones as they are, others from U+0100."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte) for byte in kept] + [chr(256 + i) for i in range(256 - len(kept))]


def write_gguf(path: Path, *, template: str | None = CHATML, architecture: str = "llama", stop: str = "") -> Path:
    """A whole model of two small layers with random weights."""
    tokens = [*byte_letters(), "<|im_start|>", "<|im_end|>", "he"]
    width, inner, heads, kv_heads, rng = 64, 96, 2, 1, np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(2)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 256 + [3, 3, 1])
    writer.add_token_merges(["h e"])
    writer.add_eos_token_id(257)
    if template is not None:
        writer.add_chat_template(template)
    shapes = {"token_embd": (len(tokens), width), "output_norm": (width,)}
    head_dim = width // heads
    for i in range(2):
        shapes |= {
            f"blk.{i}.attn_norm": (width,),
            f"blk.{i}.attn_q": (width, width),
            f"blk.{i}.attn_k": (kv_heads * head_dim, width),
            f"blk.{i}.attn_v": (kv_heads * head_dim, width),
            f"blk.{i}.attn_output": (width, width),
            f"blk.{i}.ffn_norm": (width,),
            f"blk.{i}.ffn_gate": (inner, width),
            f"blk.{i}.ffn_up": (inner, width),
            f"blk.{i}.ffn_down": (width, inner),
        }
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", rng.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def ask(model: Path | str, *options: str) -> list[str]:
    return ["chat", str(model), "-p", "hi", "--backend", "numpy", *options]
