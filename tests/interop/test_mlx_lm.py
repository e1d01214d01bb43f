"""What `write_mlx` wrote, judged by mlx-lm: it loads, and gives transformers' logits and our greedy tokens.

mlx-lm gives every layer of Mistral, Qwen2, Qwen3-MoE, Gemma 2 and Phi-3 full attention, whatever the config says of a
sliding window, so these are compared within the window. It always takes LongRoPE's long factors, as transformers does
beyond the original length: those are compared there. It rounds yarn's bounds to whole dims, also where the config says
truncate: false (gpt-oss), so that one is compared with a config that says true. It does not know Granite SWA and LFM3,
nor gates of each number in Laguna, nor biases and scaled rope in Muse Glimmer.
LFM2's head is always its embedding there.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import partita
from partita.checkpoint.open import open_checkpoint
from partita.quantization import SMALL_FLOATS, Packed, quantize_weight
from partita_convert.quantize import quantize
from partita_convert.write_folder import write_mlx

from .. import bounds, tiny_models
from ..models.test_wrappers import MODELS, TOKENS, written

NOT_READ = {
    "gpt_oss",  # truncate: false
    "granite_swa",
    "laguna-elements",
    "lfm2-biased",
    "lfm3",
    "lfm3-biased",
    "muse_glimmer-odd",
    "qwen3_5-recurrent",  # it looks for a layer that attends
    # Olmo Hybrid's norms have other names there
    *(name for name in tiny_models.RECURRENT if name.startswith("olmo_hybrid")),
}
NOT_WHOLE = {"cohere2_vision", "idefics3", "lfm2_vl", "lfm3_vl", "smolvlm"}
NAMES = [name for name in tiny_models.NAMES if name not in NOT_READ]
WITHIN_THE_WINDOW = {"mistral", "qwen2-sliding", "qwen3_moe-period", "gemma2", "phi3"}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("judged-by-mlx-lm")


def loaded(path: Path) -> Any:
    from mlx_lm.utils import load_model

    return load_model(path)[0]


def logits_of(model: Any, tokens: list[int]) -> np.ndarray:
    import mlx.core as mx

    return np.array(model(mx.array([tokens]))[0].astype(mx.float32))


@pytest.mark.parametrize("name", NAMES)
def test_dense_weights_give_the_logits_of_transformers(name: str, folder: Path, tmp_path: Path) -> None:
    source = tiny_models.write(name, folder)
    tokens = tiny_models.tokens(source, 32 if name in WITHIN_THE_WINDOW else tiny_models.TOKENS)
    write_mlx(open_checkpoint(source), tmp_path / "out")
    found = logits_of(loaded(tmp_path / "out"), tokens)
    bounds.assert_near(found, tiny_models.reference_logits(source, tokens), bounds.logits(source))


@pytest.mark.parametrize("name", [name for name in MODELS if name not in NOT_WHOLE])
def test_a_model_that_sees_gives_the_logits_of_transformers(name: str, tmp_path: Path) -> None:
    """Of text, with what it sees by beside it."""
    source, expected = written(name, tmp_path)
    write_mlx(open_checkpoint(source), tmp_path / "out")
    bounds.assert_near(logits_of(loaded(tmp_path / "out"), TOKENS[0].tolist()), expected, bounds.logits(source))


@pytest.mark.parametrize("name", NAMES)
def test_packed_weights_give_our_greedy_tokens(name: str, folder: Path, tmp_path: Path) -> None:
    source = tiny_models.write(name, folder)
    write_mlx(open_checkpoint(source), tmp_path / "out", transform=four_bits)
    assert_our_tokens(tmp_path / "out", tiny_models.tokens(source, 12))


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "lfm2_moe"])
@pytest.mark.parametrize("mode", [*SMALL_FLOATS, "mixed"])
def test_small_floats_give_our_greedy_tokens(mode: str, name: str, folder: Path, tmp_path: Path) -> None:
    """Matrices of layers in one mode, or each in another, beside integers of other widths."""
    source = tiny_models.write(name, folder)

    def floats(name: str, value: Any) -> Any:
        if ".layers." not in name or "router" in name or "gate.weight" in name:
            return four_bits(name, value)
        if isinstance(value, Packed) or value.ndim < 2 or not name.endswith(".weight") or value.shape[-1] % 32:
            return value
        if mode != "mixed":
            return quantize(value, *SMALL_FLOATS[mode], mode=mode)
        ways = [quantize_weight, *(partial(quantize, mode=own) for own in SMALL_FLOATS)]
        chosen = sum(name.encode()) % len(ways)
        bits, group = (1 + sum(name.encode()) % 6, 32) if chosen == 0 else list(SMALL_FLOATS.values())[chosen - 1]
        return ways[chosen](value, bits, group)

    write_mlx(open_checkpoint(source), tmp_path / "out", transform=floats)
    assert_our_tokens(tmp_path / "out", tiny_models.tokens(source, 12))


def assert_our_tokens(path: Path, prompt: list[int]) -> None:
    import mlx.core as mx
    from mlx_lm.generate import generate_step

    ours = partita.load(str(path), backend="mlx", dtype="float32")
    session = ours.session(kv="32")
    wanted = [piece.token.id for piece in session.generate(prompt, max_tokens=16) if piece.token is not None]
    found = [int(token) for token, _ in generate_step(mx.array(prompt), loaded(path), max_tokens=len(wanted))]
    assert len(wanted) == 16
    assert found == wanted


def four_bits(name: str, value: np.ndarray | Packed) -> np.ndarray | Packed:
    """Matrices packed in groups of 32 with float32 scales, so that both compute in float32."""
    if isinstance(value, Packed) or value.ndim < 2 or not name.endswith(".weight"):  # experts' biases have two axes
        return value
    return value if value.shape[-1] % 32 else quantize_weight(value, 4, 32)  # taps of convolutions
