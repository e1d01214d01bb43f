"""A cache saved and loaded on every backend: the same bits go on the same way, and nothing else is taken."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

import partita_backends
from partita.backend import Backend
from partita.cache.kv_format import KVFormat
from partita.cache.session_file import FORMAT, Identity, layout, load, read_extra, save
from partita.cache.spec import CacheSpec, LayerSpec, Span
from partita.cache.state import Cache
from partita.errors import CheckpointError, ContextError, DataError, PartitaError
from partita.model.config import RopeConfig

from .. import bounds
from ..stacked import attend

D, HEADS, KV_HEADS, CHUNK = 32, 4, 2, 4
ROPE = RopeConfig(10_000.0, D)
KINDS = ["32", "16", "k8v4", "k4v4h"]
MINE = Identity("small", "f" * 64)


def spec_of(kv: str = "32", *, window: int | None = 8, slack: int = 3) -> CacheSpec:
    """One full-attention layer, a ring with two sinks, and one sliding layer without."""
    layers = tuple(
        LayerSpec(KV_HEADS, D, span, ROPE, 0.3, None) for span in (Span(window, 2 if window else 0), Span(5, 0))
    )
    return CacheSpec(layers, KVFormat.parse(kv), 10 if window else None, 2 if window else 0, CHUNK, slack)


def step(cache: Cache, seed: int, tokens: int = 3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    found = []
    cache.advance(tokens)
    for layer in range(len(cache.spec.layers)):
        q, k, v = (rng.standard_normal((1, h, tokens, D)).astype(np.float32) for h in (HEADS, KV_HEADS, KV_HEADS))
        found.append(attend(cache, layer, q, k, v))
    return np.stack(found)


def filled(ops: Backend, spec: CacheSpec, steps: int, trimmed: int = 0) -> tuple[Cache, list[int]]:
    cache = Cache(ops, spec)
    for i in range(steps):
        step(cache, i, CHUNK)
    cache.trim(trimmed)
    return cache, list(range(1000, 1000 + CHUNK * steps - trimmed))


def forward(cache: Cache) -> np.ndarray:
    return np.stack([step(cache, 100 + i) for i in range(6)])


@pytest.mark.parametrize("kv", KINDS)
@pytest.mark.parametrize(("steps", "trimmed"), [(0, 0), (1, 0), (2, 1), (9, 0), (9, 3)])
def test_goes_on_with_the_same_bits(ops: Backend, kv: str, steps: int, trimmed: int, tmp_path: Path) -> None:
    """Empty, before the wrap, after it, and with tokens taken back."""
    cache, tokens = filled(ops, spec_of(kv), steps, trimmed)
    file = tmp_path / "session"
    save(file, cache, tokens, MINE, {"messages": [{"role": "user", "content": "é"}]})
    fresh = Cache(ops, spec_of(kv))
    found = load(file, fresh, MINE)
    assert fresh.offsets == [0]
    assert found.tokens == tokens
    assert found.extra == {"messages": [{"role": "user", "content": "é"}]}
    assert read_extra(file) == ("small", found.extra)
    fresh.restore(found.snapshot)
    assert fresh.nbytes == cache.nbytes
    assert all(fresh.can_trim(n) == cache.can_trim(n) for n in range(len(tokens)))
    np.testing.assert_array_equal(forward(fresh), forward(cache))
    assert [path.name for path in tmp_path.iterdir()] == ["session"]


@pytest.mark.parametrize("kv", KINDS)
@pytest.mark.parametrize("steps", [2, 9])
def test_goes_on_on_another_backend(ops: Backend, kv: str, steps: int, tmp_path: Path) -> None:
    cache, tokens = filled(ops, spec_of(kv), steps)
    save(tmp_path / "session", cache, tokens, MINE)
    expected = forward(cache)
    for name in partita_backends.names():
        other = Cache(partita_backends.load(name, dtype="float32"), spec_of(kv))
        other.restore(load(tmp_path / "session", other, MINE).snapshot)
        # What is written from now on is rounded by another backend, where a tie may fall to the other side. A step of 8
        # bits moves a score by 0.006; with 4 bits a tie is one number in a million.
        error = 2 * bounds.attention(D, 10 + CHUNK, score=8, value=4) if kv == "32" else 0.006
        bounds.assert_near(forward(other), expected, error, 1)


@pytest.mark.parametrize("name", ["torch", "mlx"])
def test_bfloat16_is_stored_as_it_is(name: str, tmp_path: Path) -> None:
    cache, tokens = filled(partita_backends.load(name, dtype="bfloat16"), spec_of("16"), 3)
    save(tmp_path / "session", cache, tokens, MINE)
    with safe_open(tmp_path / "session", "numpy") as file:
        assert file.get_slice("layers.0.kv").get_dtype() == "BF16"
        assert file.get_tensor("tokens").tolist() == tokens
    saved = load(tmp_path / "session", cache, MINE)
    for mine, theirs in zip(cache.arrays(), saved.snapshot.arrays, strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(cache.ops.to_numpy(mine), cache.ops.to_numpy(theirs))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kv=st.sampled_from(KINDS), window=st.sampled_from([None, 8, 300]), steps=st.integers(0, 90))
def test_the_layout_is_the_caches_own(ops: Backend, kv: str, window: int | None, steps: int) -> None:
    """Names apart, what is expected of a file is what a cache holds, at any length."""
    cache = Cache(ops, spec_of(kv, window=window))
    for _ in range(steps):
        cache.advance(CHUNK)
    places = layout(cache.spec, cache.dense, CHUNK * steps)
    assert [shape for _, shape, _ in places] == [tuple(array.shape) for array in cache.arrays()]
    for (_, _, dtype), array in zip(places, cache.arrays(), strict=True):
        stored = cache.ops.to_numpy(array).dtype
        assert stored == np.dtype(dtype) or (dtype == "uint32" and stored == np.int32)
    assert len({name for name, _, _ in places}) == len(places)


def test_a_row_that_was_in_a_batch_is_saved_at_its_own_size(ops: Backend, tmp_path: Path) -> None:
    spec = spec_of(window=None)
    row, tokens = filled(ops, spec, 2)
    alone, _ = filled(ops, spec, 2)
    row.extend(filled(ops, spec, 70)[0])
    row.filter([0])
    assert row.nbytes > alone.nbytes
    save(tmp_path / "session", row, tokens, MINE)
    fresh = Cache(ops, spec)
    fresh.restore(load(tmp_path / "session", fresh, MINE).snapshot)
    assert fresh.nbytes == alone.nbytes
    bounds.assert_near(forward(fresh), forward(alone), 2 * bounds.attention(D, 20, score=8, value=4), 1)


def changed(spec: CacheSpec, **fields: Any) -> CacheSpec:
    return replace(spec, **fields)


SPEC = spec_of("k8v4")
OTHERS = {
    "model": (SPEC, Identity("other", "e" * 64), "model small, now other is loaded"),
    "weights": (SPEC, Identity("small", "e" * 64), "that name now leads to other weights"),
    "adapter": (SPEC, Identity("small", "f" * 64, "polite"), "adapter '', now adapter polite is asked"),
    "bits": (spec_of("16"), MINE, "`kv` k8v4, now `kv` 16 is asked: give `kv` k8v4 or another file"),
    "group": (changed(SPEC, kv=KVFormat.parse("k8v4:64")), MINE, "`kv` k8v4, now `kv` k8v4:64 is"),
    "rotation": (spec_of("k8v4h"), MINE, "`kv` k8v4, now `kv` k8v4h is"),
    "context": (changed(SPEC, context=12), MINE, "`context` 10, now `context` 12 is"),
    "sinks": (changed(SPEC, sinks=3), MINE, "`sinks` 2, now `sinks` 3 is"),
    "chunk": (changed(SPEC, chunk=5), MINE, "chunk 4, now chunk 5 is"),
    "slack": (changed(SPEC, slack=9), MINE, "slack 3, now slack 9 is"),
    "windows": (changed(SPEC, layers=(*SPEC.layers[:1], replace(SPEC.layers[1], span=Span(6, 0)))), MINE, "windows"),
    "rope": (changed(SPEC, layers=tuple(replace(x, rope=RopeConfig(5e5, D)) for x in SPEC.layers)), MINE, "rotary"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_cache_is_refused_by_name(what: str, oracle: Backend, tmp_path: Path) -> None:
    spec, identity, message = OTHERS[what]
    cache, tokens = filled(oracle, SPEC, 3)
    save(tmp_path / "session", cache, tokens, MINE)
    with pytest.raises(ContextError, match=f"session: .*saved with .*{re.escape(message)}"):
        load(tmp_path / "session", Cache(oracle, spec), identity)


def test_another_width_of_dense_keys_is_refused(tmp_path: Path) -> None:
    cache, tokens = filled(partita_backends.load("torch", dtype="bfloat16"), spec_of("16"), 1)
    save(tmp_path / "session", cache, tokens, MINE)
    other = Cache(partita_backends.load("torch", dtype="float32"), spec_of("16"))
    with pytest.raises(ContextError, match=r"in bfloat16, now .* in float16 "):
        load(tmp_path / "session", other, MINE)


def rewritten(file: Path, **fields: Any) -> None:
    """Change fields of the description, whatever the checksum says."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    table = json.loads(data[8 : 8 + length])
    description = {**json.loads(table["__metadata__"]["partita_session"]), **fields}
    table["__metadata__"]["partita_session"] = json.dumps(description)
    text = json.dumps(table).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def test_another_format_is_refused(oracle: Backend, tmp_path: Path) -> None:
    cache, tokens = filled(oracle, SPEC, 1)
    save(tmp_path / "session", cache, tokens, MINE)
    rewritten(tmp_path / "session", format=FORMAT + 1)
    with pytest.raises(ContextError, match=f"format {FORMAT + 1}, now format {FORMAT} "):
        load(tmp_path / "session", cache, MINE)


@pytest.mark.parametrize("fields", [{"offset": 11}, {"reached": 1 << 40}, {"reached": 999_999}, {"offset": -1},
                                    {"offset": "12"}, {"extra": []}, {"extra": {"a": 1}}, {"reached": 13}])  # fmt: skip
def test_a_description_that_was_changed_is_refused(fields: dict[str, Any], oracle: Backend, tmp_path: Path) -> None:
    cache, tokens = filled(oracle, SPEC, 3)
    save(tmp_path / "session", cache, tokens, MINE)
    rewritten(tmp_path / "session", **fields)
    with pytest.raises(CheckpointError, match=r"session: .*damaged"):
        load(tmp_path / "session", cache, MINE)


def test_what_is_not_a_session_is_refused(oracle: Backend, tmp_path: Path) -> None:
    cache = Cache(oracle, SPEC)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(tmp_path / "nothing", cache, MINE)
    empty = b'{"x": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}'
    for data in (b"", b"hello", b"\0" * 64, len(empty).to_bytes(8, "little") + empty):
        (tmp_path / "file").write_bytes(data)
        with pytest.raises(CheckpointError, match="file: "):
            load(tmp_path / "file", cache, MINE)


def test_a_place_that_cannot_be_written_keeps_what_was_there(oracle: Backend, tmp_path: Path) -> None:
    cache, tokens = filled(oracle, SPEC, 1)
    with pytest.raises(DataError, match="cannot be written"):
        save(tmp_path / "none" / "session", cache, tokens, MINE)
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="cannot be written"):
        save(tmp_path / "folder", cache, tokens, MINE)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    with pytest.raises(ContextError, match="3 tokens cannot be saved"):
        save(tmp_path / "session", cache, tokens[:3], MINE)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    cache, tokens = filled(partita_backends.load("numpy"), SPEC, 9)
    file = tmp_path_factory.mktemp("whole") / "session"
    save(file, cache, tokens, MINE)
    return file.read_bytes()


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1), header=st.booleans(), value=st.integers(1, 255), cut=st.booleans())
def test_every_damage_is_reported(
    place: float, header: bool, value: int, cut: bool, whole: bytes, oracle: Backend, tmp_path: Path
) -> None:
    """One changed byte, or the end missing: a typed error, and the cache is as it was."""
    data = bytearray(whole)
    length = 8 + int.from_bytes(whole[:8], "little")
    at = min(int(place * (length if header else len(data))), len(data) - 1)
    if cut:
        data = data[:at]
    else:
        data[at] ^= value
        assume(not (whole[at : at + 1].isspace() and data[at : at + 1].isspace()))  # between two words of the header
    cache, _ = filled(oracle, SPEC, 1)
    (tmp_path / "session").write_bytes(data)
    with pytest.raises(PartitaError) as caught:
        load(tmp_path / "session", cache, MINE)
    assert isinstance(caught.value, CheckpointError | ContextError)
    assert "\n" not in str(caught.value)
    assert cache.offsets == [CHUNK]
