"""Our GGUF files judged by llama.cpp: transformers' logits, and our token ids.

llama.cpp runs in a child process, by the Python that PARTITA_PEER_PYTHON names (`make interop`); its cache is kept in
float32. It rounds activations to the type of the weights (8 bits beside quantized ones) and takes Gemma's GELU from a
table in float16, hence the tolerances. Where it computes something else than transformers do, and so than we do, the
comparison says so: it gives every layer of Phi-3 full attention, and rounds yarn's bounds, which gpt-oss does not.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from partita.checkpoint.gguf.reader import open_gguf
from partita.checkpoint.open import open_checkpoint
from partita.quantization import Packed, dequantize
from partita.text.load import load_tokenizer
from partita_convert.gguf.mixes import MIXES
from partita_convert.gguf.shapes import Shape, write_shape
from partita_convert.gguf.tokenizer import SAMPLES
from partita_convert.gguf.write import KINDS, plan_of, write_gguf
from partita_convert.write_folder import write_huggingface

from .. import bounds, gguf_models, tiny_models
from ..convert.test_write_gguf_tokenizer import GEMMA4_CONFIG, spaced

pytestmark = pytest.mark.interop
CHILD = Path(__file__).with_name("llama_cpp_child.py")
TEXTS = [text for text in SAMPLES if "\x00" not in text]  # llama.cpp takes C strings
AS_LLAMA_CPP_HAS_IT: dict[str, dict[str, Any]] = {"phi3": {"sliding_window": None}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("judged-by-llama-cpp")


def peer(
    path: Path, tokens: list[int], out: Path, texts: Sequence[str] = (), context: int = 128
) -> tuple[np.ndarray, list[list[int]]]:
    """(logits (T, V), ids of each text) of llama.cpp."""
    python = os.environ.get("PARTITA_PEER_PYTHON")
    assert python, "PARTITA_PEER_PYTHON names no Python that has llama-cpp-python: run `make interop`"
    done = subprocess.run(
        [python, str(CHILD), str(path), str(context), str(out)],
        input=json.dumps({"tokens": tokens, "texts": list(texts)}),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return np.load(out), json.loads(done.stdout)


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


WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 2}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_read_as_we_read_it(kind: str, folder: Path, tmp_path: Path) -> None:
    made = {"model_type": "llama", **WIDE, "head_dim": 32, "tie_word_embeddings": False}
    source = tiny_models.write("wide-llama", folder, made) if "K" in kind else gguf_models.write("qwen3", folder)
    write_gguf(open_checkpoint(source), tmp_path / "m.gguf", kind=kind)
    tokens = tiny_models.tokens(source)
    found, _ = peer(tmp_path / "m.gguf", tokens, tmp_path / "out.npy")
    write_huggingface(open_checkpoint(tmp_path / "m.gguf"), tmp_path / "dense")
    expected = tiny_models.reference_logits(tmp_path / "dense", tokens)
    # beside K-quants activations have one scale for 256 numbers in 8 bits, and not for 32
    assert away(found, expected) < {"F16": 5e-3}.get(kind, 6e-2 if kind in MIXES else 3e-2)


QUANTIZER = Path(__file__).with_name("llama_cpp_quantizer.py")


def theirs(source: Path, mix: str, importance: Path | None = None) -> Path:
    """What llama.cpp's quantizer makes of a file. importance: an .npz, by tensors' names."""
    target = source.with_name(f"{mix}.gguf")
    number = str(int(gguf.LlamaFileType[f"MOSTLY_{mix}"]))
    command = [os.environ["PARTITA_PEER_PYTHON"], str(QUANTIZER), str(source), str(target), number]
    command += [] if importance is None else [str(importance)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return target


def types(path: Path) -> dict[str, str]:
    """Of each tensor, by its name."""
    return {name: tensor.type for name, tensor in open_gguf(path).tensors.items()}


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("layers", [8, 17])
@pytest.mark.parametrize("family", ["llama", "tied", "4-experts", "8-experts", "narrow"])
def test_types_are_those_of_their_quantizer(family: str, layers: int, mix: str, folder: Path, tmp_path: Path) -> None:
    experts = {"model_type": "qwen3_moe", **WIDE, "num_experts_per_tok": 2, "moe_intermediate_size": 256}
    experts |= {"decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True}
    own: dict[str, dict[str, Any]] = {
        "llama": {"model_type": "llama", **WIDE, "tie_word_embeddings": False},
        "tied": {"model_type": "llama", **WIDE, "num_key_value_heads": 4, "tie_word_embeddings": True},
        "4-experts": {**experts, "num_experts": 4},
        "8-experts": {**experts, "num_experts": 8},
        "narrow": {"model_type": "llama", **WIDE, "intermediate_size": 288, "tie_word_embeddings": False},
    }
    made = {**own[family], "head_dim": 32, "num_hidden_layers": layers}
    source = tiny_models.write(f"{family}-{layers}", folder, made)
    plain = write_gguf(open_checkpoint(source), tmp_path / "m.gguf", kind="F32").path
    write_gguf(open_checkpoint(source), tmp_path / "ours.gguf", kind=mix)
    found = {name: "Q4_0" if kind == "IQ4_NL" else kind for name, kind in types(theirs(plain, mix)).items()}
    assert types(tmp_path / "ours.gguf") == found


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("mix", ["Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K"])
def test_no_tensor_has_a_larger_error_than_theirs(mix: str, weighed: bool, folder: Path, tmp_path: Path) -> None:
    """Squared errors, weighed by what both were given."""
    made = {"model_type": "llama", **WIDE, "head_dim": 32, "tie_word_embeddings": False}
    source = open_checkpoint(tiny_models.write("wide-llama", folder, made))
    plain = write_gguf(source, tmp_path / "m.gguf", kind="F32").path
    random = np.random.default_rng(3)
    planned = [tensor for tensor in plan_of(source) if len(tensor.shape) == 2]
    given = {tensor.gguf_name: np.exp(random.standard_normal(tensor.shape[-1])) for tensor in planned}
    np.savez(tmp_path / "i.npz", **given)  # pyright: ignore[reportArgumentType]
    columns = {tensor.name: given[tensor.gguf_name] for tensor in planned} if weighed else {}
    write_gguf(source, tmp_path / "ours.gguf", kind=mix, columns=columns)
    other = open_checkpoint(theirs(plain, mix, tmp_path / "i.npz" if weighed else None))
    ours = open_checkpoint(tmp_path / "ours.gguf")
    for tensor in planned:
        weights = given[tensor.gguf_name] if weighed else np.ones(tensor.shape[-1])
        costs: list[float] = []
        for checkpoint in (ours, other):
            value = checkpoint.read(tensor.name)
            dense = dequantize(value) if isinstance(value, Packed) else value
            costs.append(float((np.square((dense - source.read(tensor.name)).astype(np.float64)) @ weights).sum()))
        assert costs[0] < costs[1], tensor.name


@pytest.mark.parametrize("width", [64, 256])
def test_a_file_in_the_shape_of_a_model_is_read_as_we_read_it(width: int, tmp_path: Path) -> None:
    """Q4_0, and Q8_0 or Q6_K for the embedding; its vocabulary too."""
    write_shape(Shape(2, width, 4, 2, width // 4, 2 * width, 1000, tied=width == 64), tmp_path / "m.gguf")
    checkpoint, tokens = open_checkpoint(tmp_path / "m.gguf"), list(range(300, 332))
    found, ids = peer(tmp_path / "m.gguf", tokens, tmp_path / "out.npy", TEXTS)
    write_huggingface(checkpoint, tmp_path / "dense")
    expected = tiny_models.reference_logits(tmp_path / "dense", tokens)
    assert away(found, expected) < 3e-2
    tokenizer = load_tokenizer(checkpoint)
    assert ids == [tokenizer.encode(text, bos=False) for text in TEXTS]
