"""Which cache a given amount of free memory allows, and what is said where it does not: numbers and flags that help."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partita.backend import Memory
from partita.cache.budget import RESERVE, choose, full_bytes
from partita.cache.kv_format import KVFormat
from partita.cache.spec import plan
from partita.errors import ContextError, MemoryBudgetError
from partita.language_model import load
from partita.model.config import LayerConfig, ModelConfig, RopeConfig

DENSE = KVFormat(16, 16)


def config(head_dim: int = 64, layers: int = 16, window: int | None = None) -> ModelConfig:
    rope = RopeConfig(10_000.0, head_dim)
    kinds = (LayerConfig(None, rope), *[LayerConfig(window, rope)] * (layers - 1))
    return ModelConfig("test", 100, 64, 64, 8, 4, head_dim, kinds, 131072, 1e-5, 0.125, "silu", True)


def need(kv: str, context: int | None = None, model: ModelConfig | None = None) -> int:
    return full_bytes(plan(model or config(), KVFormat.parse(kv), context=context))


def test_sixteen_bits_and_the_trained_maximum_where_they_fit() -> None:
    choice = choose(config(), "auto", DENSE, need("16") + RESERVE)
    assert (str(choice.spec.kv), choice.spec.context, choice.text) == ("16", 131072, None)
    assert choice.bytes == need("16")


def test_float32_stays_where_it_fits_and_goes_to_16_bits_first() -> None:
    dense = KVFormat(32, 32)
    assert str(choose(config(), "auto", dense, need("32") + RESERVE).spec.kv) == "32"
    assert str(choose(config(), "auto", dense, need("32") + RESERVE - 1).spec.kv) == "16"


@pytest.mark.parametrize("kv", ["k8v8", "k8v4", "k4v4h"])
def test_auto_steps_down_to_what_fits_and_says_so(kv: str) -> None:
    choice = choose(config(), "auto", DENSE, need(kv) + RESERVE)
    assert str(choice.spec.kv) == kv
    assert choice.spec.context == 131072
    assert choice.text is not None
    assert choice.text.startswith(f"`kv` auto is {kv} here: a cache of 131072 tokens needs 2.0 GiB at 16, ")
    assert "\n" not in choice.text


def test_formats_that_the_head_dim_does_not_allow_are_left_out() -> None:
    model = config(head_dim=96)  # no power of two: no rotation
    assert str(choose(model, "auto", DENSE, need("k8v4", model=model) + RESERVE).spec.kv) == "k8v4"
    with pytest.raises(MemoryBudgetError) as error:
        choose(model, "auto", DENSE, need("k8v4", model=model) + RESERVE - 1)
    assert "`kv`" not in str(error.value).split("): ")[1]
    model = config(head_dim=80)  # no whole groups: 16 bits only
    with pytest.raises(MemoryBudgetError, match=r"try `context` [0-9]+$"):
        choose(model, "auto", DENSE, need("16", model=model) + RESERVE - 1)


def test_what_was_asked_for_is_never_changed() -> None:
    with pytest.raises(MemoryBudgetError) as error:
        choose(config(), "16", DENSE, need("k8v4") + RESERVE)
    text = str(error.value)
    assert text.startswith("a cache of 131072 tokens at `kv` 16 needs 2.0 GiB, 1.1 GiB are free (256 MiB of them are")
    assert "try `kv` k8v4 or `context` " in text


@given(free=st.integers(RESERVE + 2**24, 5 * 2**30), kv=st.sampled_from(["16", "k8v8", "k4v4"]), sliding=st.booleans())
def test_flags_that_a_refusal_names_do_help(free: int, kv: str, sliding: bool) -> None:
    model = config(window=1024 if sliding else None)
    try:
        choice = choose(model, kv, DENSE, free)
    except MemoryBudgetError as error:
        hint = str(error).split("): ")[1]
        for flag, value in re.findall(r"`(kv|context)` (\S+)", hint):
            asked = {"kv": value} if flag == "kv" else {"kv": kv, "context": int(value)}
            assert choose(model, asked.pop("kv"), DENSE, free, **asked).bytes <= free - RESERVE
        assert "`" in hint or need(kv, 1024, model) > free - RESERVE
    else:
        assert choice.bytes <= free - RESERVE


@given(free=st.integers(RESERVE, 5 * 2**30), kv=st.sampled_from(["auto", "16", "k8v4"]))
def test_context_auto_is_the_largest_that_fits(free: int, kv: str) -> None:
    budget = free - RESERVE
    try:
        choice = choose(config(), kv, DENSE, free, context="auto")
    except MemoryBudgetError:
        assert need("k4v4h" if kv == "auto" else kv, 1024) > budget
        return
    context = choice.spec.context
    assert context is not None
    assert context % 1024 == 0
    assert choice.bytes <= budget
    if context < 131072:
        assert need(str(choice.spec.kv), context + 1024) > budget
        assert choice.text is not None


def test_rows_of_a_batch_each_need_their_own() -> None:
    assert choose(config(), "16", DENSE, 2 * need("16") + RESERVE, batch=2).bytes == 2 * need("16")
    with pytest.raises(MemoryBudgetError, match="for each of 2 rows"):
        choose(config(), "16", DENSE, 2 * need("16") + RESERVE - 1, batch=2)


def test_a_context_that_cannot_be_is_refused_as_such() -> None:
    with pytest.raises(ContextError, match="beyond the 131072 tokens"):
        choose(config(), "16", DENSE, 0, context=200_000)
    with pytest.raises(ContextError, match="or auto, got 'all'"):
        choose(config(), "16", DENSE, 0, context="all")


def test_sinks_take_their_part_of_an_automatic_context() -> None:
    spec = plan(config(), KVFormat.parse("k4v4h"), context=4096, sinks=2000)
    assert choose(config(), "k4v4h", DENSE, full_bytes(spec) + RESERVE, context="auto", sinks=2000).spec == spec
    small = replace(config(), max_positions=500)
    assert choose(small, "16", DENSE, 2**40, context="auto").spec.context == 500


def test_a_model_is_judged_by_its_devices_memory(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(tiny_model, backend="numpy")
    full = model.choose_cache()
    assert (str(full.spec.kv), full.spec.context, full.text) == ("32", 512, None)
    free = RESERVE + full.bytes - 1
    monkeypatch.setattr(type(model.ops), "memory", lambda _: Memory(2**40, free, 0, 0))
    assert str(model.cache_spec().kv) == "16"
    with pytest.raises(MemoryBudgetError, match=r"try `kv` 16$"):
        model.session(kv="32")
