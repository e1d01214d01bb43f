"""How far a conversion is, in bytes of the source: from none to all of what is written, never back."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from partita.checkpoint.base import shares
from partita.checkpoint.open import open_checkpoint
from partita.sources.listener import Listener
from partita_apps.progress import _Steps
from partita_convert.conversion import Options, run

from .. import gguf_models
from . import fuzz_schemes


class Heard(Listener):
    """moved: every (done, total) in bytes. parts: the same of each other kind of work, by its name."""

    def __init__(self) -> None:
        self.moved: list[tuple[int, int]] = []
        self.parts: dict[str, list[tuple[int, int]]] = {}

    @contextmanager
    def working(self, what: str) -> Generator[Callable[[int, int], None]]:
        yield lambda done, total: self.parts.setdefault(what, []).append((done, total))

    @contextmanager
    def moving(self, what: str) -> Generator[Callable[[int, int], None]]:
        assert what == "writing"
        yield lambda done, total: self.moved.append((done, total))


def heard(source: Path, dest: Path, **options: Any) -> Heard:
    run(str(source), dest, Options(**{"calibration": "none", **options}), listener := Heard())
    return listener


def reaches(moved: list[tuple[int, int]], total: int) -> None:
    counts = [done for done, _ in moved]
    assert {of for _, of in moved} == {total}
    assert (counts[0], counts[-1]) == (0, total)
    assert counts == sorted(counts)
    assert len(set(counts)) > 2


def stored(source: Path) -> int:
    """Bytes of all tensors of a file or folder, by other readers than ours."""
    if source.suffix == ".gguf":
        return sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(source).tensors)
    return sum(value.nbytes for value in load_file(source / "model.safetensors").values())


FORMS: dict[str, dict[str, Any]] = {
    "mlx": {},
    "huggingface": {"to": "huggingface"},
    "gguf": {"to": "gguf"},
    "4 bits": {"quantize": "4:32"},
    "small floats": {"quantize": "mxfp4"},
    "Q4_K_M": {"to": "gguf", "quantize": "Q4_K_M"},
    "servers": {"to": "compressed-tensors", "quantize": "4:32"},
}


def place(folder: Path, options: dict[str, Any]) -> Path:
    return folder / ("out.gguf" if options.get("to") == "gguf" else "out")


@pytest.mark.parametrize(
    ("name", "form"),
    [
        (name, form)
        for name in ("gpt_oss", "qwen3_moe", "gemma4-experts", "lfm2_moe")
        for form in FORMS
        if form != "servers"
    ]
    + [("llama-biased", form) for form in FORMS]
    + [("qwen3_next-grouped", form) for form in ("mlx", "huggingface")],
)
def test_every_byte_of_a_dense_source(name: str, form: str, families: Path, tmp_path: Path) -> None:
    """Experts one by one, stacked and fused: what several tensors are made of counts once."""
    source, options = gguf_models.write(name, families), FORMS[form]
    reaches(heard(source, place(tmp_path, options), **options).moved, stored(source))


@pytest.mark.parametrize("form", ["mlx", "huggingface", "gguf", "Q4_K_M"])
@pytest.mark.parametrize("packed", ["4 bits", "small floats", "Q4_K_M"])
def test_every_byte_of_a_packed_source(packed: str, form: str, families: Path, tmp_path: Path) -> None:
    """Widths are mixed: scales count with their integers, and norms and routers are dense beside them."""
    source = place(tmp_path, FORMS[packed])
    heard(gguf_models.write("qwen3_moe", families), source, **FORMS[packed])
    (tmp_path / "next").mkdir()
    reaches(heard(source, place(tmp_path / "next", FORMS[form]), **FORMS[form]).moved, stored(source))


@pytest.mark.parametrize("form", fuzz_schemes.FORMS)
def test_what_a_scheme_keeps_beside_a_weight_counts_with_it(form: str, tmp_path: Path) -> None:
    tensors, block = fuzz_schemes.FORMS[form]()
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": block}))
    save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    sizes = checkpoint.weight_bytes()
    assert (*sizes,) == checkpoint.names()
    assert sum(sizes.values()) == sum(value.nbytes for value in tensors.values())
    of_one = {name: value.nbytes for name, value in tensors.items() if name.startswith("model.a.")}
    assert sizes["model.a.weight"] == sum(of_one.values())


@pytest.mark.parametrize("to", ["mlx", "gguf"])
def test_what_is_left_out_is_in_no_total(to: str, tiny_model: Path, tmp_path: Path) -> None:
    """A head beside tied embeddings, constants, and for GGUF the part that sees."""
    tensors = load_file(tiny_model / "model.safetensors")
    (source := tmp_path / "source").mkdir()
    for file in tiny_model.iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    wanted, rest = sum(value.nbytes for value in tensors.values()), {}
    rest["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(16, np.float32)
    rest["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    save_file(tensors | rest, source / "model.safetensors", metadata={"format": "pt"})
    options = FORMS[to]
    reaches(heard(source, place(tmp_path, options), **options).moved, wanted)


def test_of_a_model_that_sees_the_text_decoder_counts(
    written: Callable[..., Path], families: Path, tmp_path: Path
) -> None:
    plain = gguf_models.write("gemma3", families)
    tensors = {
        f"model.language_model.{name[6:]}": value for name, value in load_file(plain / "model.safetensors").items()
    }
    (source := tmp_path / "sees").mkdir()
    for file in plain.iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    config = json.loads((plain / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": config}))
    save_file(tensors | {"vision_tower.embeddings.weight": np.ones((4, 4), np.float32)}, source / "model.safetensors")
    reaches(heard(source, tmp_path / "out.gguf").moved, stored(plain))


def test_of_a_file_rows_that_are_split_count_in_equal_parts(families: Path, tmp_path: Path) -> None:
    source = gguf_models.write("qwen3_next-grouped", families)
    reaches(heard(source, tmp_path / "out.gguf").moved, stored(source))
    (tmp_path / "next").mkdir()
    reaches(heard(tmp_path / "out.gguf", tmp_path / "next" / "out").moved, stored(tmp_path / "out.gguf"))


def test_an_embedding_that_is_written_twice_counts_once() -> None:
    made_of = {
        "token_embd.weight": ["embed"],
        "output.weight": ["embed"],
        "rope_freqs.weight": ["none"],
        "a": ["b", "c"],
    }
    sizes = {"embed": 10, "b": 3, "c": 4, "left out": 8}
    assert shares(made_of, sizes) == {"token_embd.weight": 5, "output.weight": 5, "rope_freqs.weight": 0, "a": 7}


def test_the_calibration_is_work_of_its_own(tiny_model: Path, tmp_path: Path) -> None:
    listener = heard(tiny_model, tmp_path / "out", quantize="4:32", calibration=None, backend="numpy")
    layers = json.loads((tiny_model / "config.json").read_text())["num_hidden_layers"]
    assert listener.parts == {"reading the calibration text": [(i + 1, layers) for i in range(layers)]}
    reaches(listener.moved, stored(tiny_model))


def test_an_adapter_adds_nothing_to_the_total(adapter: Path, tiny_model: Path, tmp_path: Path) -> None:
    listener = heard(tiny_model, tmp_path / "out", quantize="4:32", adapter=adapter)
    reaches(listener.moved, stored(tiny_model))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_bytes_and_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    steps = _Steps("writing", out := Terminal(), of_bytes=True)
    steps.advance(0, 2_000_000)
    steps.show()
    steps.advance(1_000_000, 2_000_000)
    steps.shown.refresh()
    assert "1.0/2.0 MB" in out.getvalue()
    steps.advance(2_000_000, 2_000_000)
    steps.hide()
    shown = out.getvalue()
    assert "2.0/2.0 MB" in shown
    assert "/s" in shown
