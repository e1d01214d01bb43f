"""Our GGUF files judged by llama.cpp: transformers' logits, and our token ids.

llama.cpp rounds what meets weights of 16 bits and takes Gemma's GELU from a table in float16, hence the tolerances.
Where it computes something else than transformers do, and so than we do, the comparison says so: it gives every layer
of Phi-3 full attention, and rounds yarn's bounds, which gpt-oss does not. Not here: quantized files.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from partita.checkpoint.open import open_checkpoint
from partita.text.load import load_tokenizer
from partita_convert.gguf.tokenizer import SAMPLES
from partita_convert.gguf.write import write_gguf

from .. import bounds, gguf_models, tiny_models
from ..convert.test_write_gguf_tokenizer import GEMMA4_CONFIG, spaced
from .llama_cpp_peer import peer

pytestmark = pytest.mark.interop
TEXTS = [text for text in SAMPLES if "\x00" not in text]  # llama.cpp takes C strings
AS_LLAMA_CPP_HAS_IT: dict[str, dict[str, Any]] = {"phi3": {"sliding_window": None}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("judged-by-llama-cpp")


@pytest.mark.parametrize("kind", ["F32", "F16"])
@pytest.mark.parametrize("name", gguf_models.NAMES)
def test_logits_are_those_of_transformers(name: str, kind: str, folder: Path, tmp_path: Path) -> None:
    source = gguf_models.write(name, folder, AS_LLAMA_CPP_HAS_IT.get(name))
    # a general.name with phi3 in it makes llama.cpp look for tokens that only the published vocabulary has
    plain = shutil.copytree(source, tmp_path / "tiny")
    write_gguf(open_checkpoint(plain), tmp_path / "m.gguf", kind=kind)
    tokens = tiny_models.tokens(source)
    found, ids = peer(tmp_path / "m.gguf", tokens, tmp_path / "out.npy", TEXTS)
    if name == "gpt_oss":
        config = json.loads((plain / "config.json").read_text())
        config["rope_parameters"]["truncate"] = True
        (plain / "config.json").write_text(json.dumps(config))
    expected = tiny_models.reference_logits(plain, tokens)
    if kind == "F16" and name in gguf_models.RECURRENT:
        # what rounding does to a state stays, and a router that it tips chooses another expert: 0.05 of the logits'
        # size here, and 1 if a tensor is in another order
        assert away(found, expected) < 0.1
    else:
        # llama.cpp takes gemma's activation from a table in 16 bits, and rounds what meets weights of 16 bits
        exact = kind == "F32" and "gemma" not in name
        error = bounds.logits(source) if exact else (1e-2 if kind == "F32" else 5e-2) / np.abs(expected).max()
        bounds.assert_near(found, expected, error)
    tokenizer = load_tokenizer(open_checkpoint(tmp_path / "m.gguf"))
    assert ids == [tokenizer.encode(text, bos=False) for text in TEXTS]


def away(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(np.square(found - expected).mean() / np.square(expected).mean()))


YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 16,
    "llama_4_scaling_beta": 0.4,
}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("exaone4", gguf_models.SLIDING_EXAONE4),
        ("glm4", {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0}}),
        ("glm4", {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.25}}),
        ("ministral3", {"rope_parameters": YARN}),
        ("ministral3", {"rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5}}),
        ("cohere2", {"layer_types": ["sliding_attention", "full_attention"] * 2}),
    ],
)
def test_what_a_family_may_say(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    source = gguf_models.write(name, tmp_path, changes)
    write_gguf(open_checkpoint(source), tmp_path / "m.gguf", kind="F32")
    tokens = tiny_models.tokens(source)
    found, _ = peer(tmp_path / "m.gguf", tokens, tmp_path / "out.npy")
    bounds.assert_near(found, tiny_models.reference_logits(source, tokens), bounds.logits(source))


@pytest.mark.parametrize("name", ["qwen3_next-grouped", "qwen3_5_moe-tiled"])
def test_gate_and_up_of_experts_in_one_tensor(name: str, folder: Path, tmp_path: Path) -> None:
    """What we read of such files is what llama.cpp does."""
    source = gguf_models.write(name, folder)
    plain = write_gguf(open_checkpoint(source), tmp_path / "m.gguf", kind="F32").path
    tokens = tiny_models.tokens(source)
    found, _ = peer(gguf_models.with_fused_experts(plain, tmp_path / "fused.gguf"), tokens, tmp_path / "out.npy")
    bounds.assert_near(found, tiny_models.reference_logits(source, tokens), bounds.logits(source))


@pytest.mark.parametrize("prefix", [True, False])
def test_ids_of_a_sentencepiece_vocabulary(prefix: bool, folder: Path, tmp_path: Path) -> None:
    source = shutil.copytree(gguf_models.write("llama", folder), tmp_path / "tiny")
    (source / "tokenizer.json").unlink()
    (source / "tokenizer.model").write_bytes(trained(prefix))
    (source / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    config = json.loads((source / "config.json").read_text()) | {"eos_token_id": 2, "bos_token_id": 1}
    (source / "config.json").write_text(json.dumps(config))
    write_gguf(open_checkpoint(source), tmp_path / "m.gguf")
    _, ids = peer(tmp_path / "m.gguf", [], tmp_path / "out.npy", TEXTS)
    tokenizer = load_tokenizer(open_checkpoint(source))
    assert ids == [tokenizer.encode(text, bos=False) for text in TEXTS]


def test_ids_of_a_vocabulary_of_gemma_4(folder: Path, tmp_path: Path) -> None:
    source = shutil.copytree(gguf_models.write("gemma4-told", folder), tmp_path / "tiny")
    library = spaced()
    rows = len(library["model"]["vocab"]) + 4
    sizes = {"vocab_size": rows, "vocab_size_per_layer_input": rows}
    (source / "config.json").write_text(json.dumps(json.loads((source / "config.json").read_text()) | sizes))
    tensors = load_file(source / "model.safetensors")
    for name in ("model.embed_tokens.weight", "model.embed_tokens_per_layer.weight"):
        tensors[name] = np.resize(tensors[name], (rows, tensors[name].shape[1]))
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    (source / "tokenizer.json").write_text(json.dumps(library))
    (source / "tokenizer_config.json").write_text(json.dumps(GEMMA4_CONFIG))
    write_gguf(open_checkpoint(source), tmp_path / "m.gguf", kind="F32")
    tokenizer = load_tokenizer(open_checkpoint(tmp_path / "m.gguf"))
    texts = [*TEXTS, "\n\n\n\n a\n", "a\n\nb\n\n\nc"]
    _, ids = peer(tmp_path / "m.gguf", [], tmp_path / "out.npy", texts)
    assert ids == [tokenizer.encode(text, bos=False) for text in texts]


def trained(prefix: bool) -> bytes:
    """A sentencepiece model of no more tokens than the tiny models have rows."""
    import io

    import sentencepiece

    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the fox and the dog, the end of the day"]),
        model_writer=buffer,
        vocab_size=290,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=prefix,
        minloglevel=2,
    )
    return buffer.getvalue()
