"""Conversions of damaged models: a whole result that opens, or one line and nothing on the disk."""

from __future__ import annotations

import random
import shutil
import warnings
from collections import Counter
from pathlib import Path

from partita.checkpoint.open import open_checkpoint
from partita.errors import PartitaError
from partita_convert.convert import convert
from partita_convert.planning import Request

from . import fuzz_corpus, fuzz_schemes

COUNT = 300
REQUESTS = [("out", Request()), ("out", Request(quantize="4:32")), ("out", Request(to="huggingface"))]
REQUESTS += [("out.gguf", Request(to="gguf")), ("out.gguf", Request(to="gguf", quantize="Q8_0"))]


def damage(path: Path, rng: random.Random) -> None:
    """Some bytes changed, most of them in the header; or the end cut off."""
    data = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 3)):
        reach = min(len(data), 4096) if rng.random() < 0.7 else len(data)
        data[rng.randrange(reach)] = rng.randrange(256)
    if rng.random() < 0.2:
        del data[rng.randrange(len(data)) :]
    path.write_bytes(data)


def test_a_damaged_model_becomes_a_whole_one_or_nothing(tmp_path):
    (tmp_path / "models").mkdir()
    models = fuzz_corpus.write_all(tmp_path / "models", fuzz_schemes.FORMS)
    outcomes: Counter[str] = Counter()
    for number in range(COUNT):
        rng = random.Random(number)
        place = tmp_path / f"case-{number}"
        place.mkdir()
        source = place / rng.choice(models).name
        original = tmp_path / "models" / source.name
        (shutil.copytree if original.is_dir() else shutil.copyfile)(original, source)
        files = sorted(path for path in source.rglob("*") if path.is_file()) if source.is_dir() else [source]
        damage(rng.choice(files), rng)
        name, request = rng.choice(REQUESTS)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                convert(open_checkpoint(source), place / name, request)
        except PartitaError:
            assert [path.name for path in place.iterdir()] == [source.name], number
            outcomes["refused"] += 1
        else:
            assert open_checkpoint(place / name).names(), number
            assert {path.name for path in place.iterdir()} == {source.name, name}, number
            outcomes["written"] += 1
        shutil.rmtree(place)
    # folders of single matrices, half of all, are refused whatever is wrong with them
    assert min(outcomes["refused"], outcomes["written"]) > COUNT / 20, outcomes
