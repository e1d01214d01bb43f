"""Quantized GGUF files of ours judged by llama.cpp: what it reads in them, and what its own quantizer makes.

Its CPU products round activations to 8 bits, and `rounded` says how. Where no activation lies at the edge between two
integers, its logits are ours of the same rounding, to a bound of float32. Where one does, a whole step separates the
two, the next product tips more, and after some layers the two are different roundings of one size: then the distance
from the exact logits is compared, token by token (`assert_rounds_alike`).
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from partita.checkpoint.gguf.reader import open_gguf
from partita.checkpoint.open import open_checkpoint
from partita.quantization import Packed, dequantize
from partita.sources.resolve import resolve
from partita.text.load import load_tokenizer
from partita_convert.gguf.mixes import MIXES
from partita_convert.gguf.shapes import Shape, write_shape
from partita_convert.gguf.tokenizer import SAMPLES
from partita_convert.gguf.write import KINDS, plan_of, write_gguf
from partita_convert.write_folder import write_huggingface

from .. import bounds, tiny_models
from ..models.conftest import fetched, make_gemma
from . import rounded
from .llama_cpp_peer import continued, peer, peer_python

pytestmark = pytest.mark.interop
TEXTS = [text for text in SAMPLES if "\x00" not in text]  # llama.cpp takes C strings
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 2}
OF_EXPERTS = {"model_type": "qwen3_moe", **WIDE, "num_experts_per_tok": 2, "moe_intermediate_size": 256}
OF_EXPERTS |= {"decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True}
QUANTIZER = Path(__file__).with_name("llama_cpp_quantizer.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("judged-by-llama-cpp")


def llama(folder: Path, **own: Any) -> Path:
    made = {"model_type": "llama", **WIDE, "head_dim": 32, "tie_word_embeddings": False, **own}
    return tiny_models.write("wide-llama-" + "-".join(map(str, own.values())), folder, made)


def spread(x: np.ndarray) -> np.ndarray:
    """Of the last axis. What is added to all logits of a token changes no probability, and is most of a rounding."""
    return x.std(-1)


def assert_rounds_alike(found: np.ndarray, ours: rounded.Logits, error: float) -> None:
    """Every token's logits are less than twice as far from the exact ones as our rounding puts them: 8 bits in their
    place, and not 7. error: that of float32, relative to the largest logit."""
    allowed = 2 * spread(ours.rounded - ours.exact) + error * np.abs(ours.exact).max()
    np.testing.assert_array_less(spread(found - ours.exact), allowed)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_read_as_we_read_it(kind: str, folder: Path, tmp_path: Path) -> None:
    """In one layer 1,500 numbers of a row may tip. Of float16, whose steps are the smallest, one in two thousand does,
    so of half of the rows one; of 8 bits, of few rows."""
    source = llama(folder, num_hidden_layers=1)
    write_gguf(open_checkpoint(source), tmp_path / "m.gguf", kind=kind)
    tokens = tiny_models.tokens(source)
    found, _ = peer(tmp_path / "m.gguf", tokens, tmp_path / "out.npy")
    ours, error = rounded.logits(tmp_path / "m.gguf", tokens), bounds.logits(source)
    rows = np.abs(found - ours.rounded).max(-1) / np.abs(ours.rounded).max()
    assert np.quantile(rows, 0.25) < error
    assert_rounds_alike(found, ours, error)


MODELS: dict[str, Callable[[], Path]] = {
    "smollm2": lambda: resolve(None),
    "gemma3": lambda: fetched("gemma-3-270m-q4_k_m.gguf", make_gemma),
}


@pytest.fixture(scope="module", params=MODELS)
def dense(request: pytest.FixtureRequest, folder: Path) -> Path:
    """A model's folder without integers."""
    target = folder / request.param
    write_huggingface(open_checkpoint(MODELS[request.param]()), target, dtype="float32")
    return target


@pytest.mark.parametrize("kind", ["Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K"])
def test_greedy_tokens_are_ours_but_for_near_ties(kind: str, dense: Path, tmp_path: Path) -> None:
    """Where they choose another token than we do without rounding, ours is ahead by no more than rounding can do: two
    logits, each off by less than four standard deviations."""
    source = open_checkpoint(dense)
    write_gguf(source, tmp_path / "m.gguf", kind=kind)
    prompt = load_tokenizer(source).encode("The capital of France is")
    found, tokens = continued(tmp_path / "m.gguf", prompt, 24, tmp_path / "out.npy")
    ours = rounded.logits(tmp_path / "m.gguf", tokens)
    assert_rounds_alike(found, ours, bounds.logits(tmp_path / "m.gguf"))
    at, chosen = np.arange(len(prompt) - 1, len(tokens) - 1), np.array(tokens[len(prompt) :])
    ahead = ours.exact[at].max(-1) - ours.exact[at, chosen]
    np.testing.assert_array_less(ahead, 4 * np.sqrt(2) * spread(ours.rounded - ours.exact)[at])


def theirs(source: Path, mix: str, importance: Path | None = None) -> Path:
    """What llama.cpp's quantizer makes of a file. importance: an .npz, by tensors' names."""
    target = source.with_name(f"{mix}.gguf")
    number = str(int(gguf.LlamaFileType[f"MOSTLY_{mix}"]))
    command = [peer_python(), str(QUANTIZER), str(source), str(target), number]
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
    own: dict[str, dict[str, Any]] = {
        "llama": {"model_type": "llama", **WIDE, "tie_word_embeddings": False},
        "tied": {"model_type": "llama", **WIDE, "num_key_value_heads": 4, "tie_word_embeddings": True},
        "4-experts": {**OF_EXPERTS, "num_experts": 4},
        "8-experts": {**OF_EXPERTS, "num_experts": 8},
        "narrow": {"model_type": "llama", **WIDE, "intermediate_size": 288, "tie_word_embeddings": False},
    }
    made = {**own[family], "head_dim": 32, "num_hidden_layers": layers}
    source = tiny_models.write(f"{family}-{layers}", folder, made)
    plain = write_gguf(open_checkpoint(source), tmp_path / "m.gguf", kind="F32").path
    write_gguf(open_checkpoint(source), tmp_path / "ours.gguf", kind=mix)
    found = {name: "Q4_0" if kind == "IQ4_NL" else kind for name, kind in types(theirs(plain, mix)).items()}
    assert types(tmp_path / "ours.gguf") == found


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("experts", [0, 4])
@pytest.mark.parametrize("mix", ["Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K"])
def test_no_tensor_has_a_larger_error_than_theirs(
    mix: str, experts: int, weighed: bool, folder: Path, tmp_path: Path
) -> None:
    """Squared errors, weighed by what both were given, experts each by its own."""
    made = {**OF_EXPERTS, "head_dim": 32, "num_experts": experts}
    source = open_checkpoint(tiny_models.write("wide-experts", folder, made) if experts else llama(folder))
    plain = write_gguf(source, tmp_path / "m.gguf", kind="F32").path
    random = np.random.default_rng(3)
    planned = [tensor for tensor in plan_of(source) if len(tensor.shape) > 1 and "gate_inp" not in tensor.gguf_name]
    rows = {tensor.gguf_name: (*tensor.shape[:-2], tensor.shape[-1]) for tensor in planned}
    given = {name: np.exp(random.standard_normal(shape)) for name, shape in rows.items()}
    np.savez(tmp_path / "i.npz", **given)  # pyright: ignore[reportArgumentType]
    columns = {tensor.name: given[tensor.gguf_name] for tensor in planned} if weighed else {}
    write_gguf(source, tmp_path / "ours.gguf", kind=mix, columns=columns)
    other = open_checkpoint(theirs(plain, mix, tmp_path / "i.npz" if weighed else None))
    ours = open_checkpoint(tmp_path / "ours.gguf")
    for tensor in planned:
        weights = given[tensor.gguf_name][..., None, :] if weighed else 1.0
        exact, *written = (
            dequantize(value) if isinstance(value, Packed) else value
            for value in (tensor.read(), ours.read(tensor.name), other.read(tensor.name))
        )
        costs = [float((np.square((dense - exact).astype(np.float64)) * weights).sum()) for dense in written]
        assert costs[0] < costs[1], tensor.name


@pytest.mark.parametrize("width", [64, 256])
def test_a_file_in_the_shape_of_a_model_is_read_as_we_read_it(width: int, tmp_path: Path) -> None:
    """Q4_0, and Q8_0 or Q6_K for the embedding; its vocabulary too."""
    write_shape(Shape(2, width, 4, 2, width // 4, 2 * width, 1000, tied=width == 64), tmp_path / "m.gguf")
    tokens = list(range(300, 332))
    found, ids = peer(tmp_path / "m.gguf", tokens, tmp_path / "out.npy", TEXTS)
    assert_rounds_alike(found, rounded.logits(tmp_path / "m.gguf", tokens), bounds.logits(tmp_path / "m.gguf"))
    tokenizer = load_tokenizer(open_checkpoint(tmp_path / "m.gguf"))
    assert ids == [tokenizer.encode(text, bos=False) for text in TEXTS]
