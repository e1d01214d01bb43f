"""Every family's logits against transformers' on tiny random models, across their windows, however they are fed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

import partita
import partita_backends
from partita.backend import Backend
from partita.cache.kv_format import KVFormat
from partita.cache.spec import DEFAULT_CHUNK, CacheSpec, plan
from partita.cache.state import Cache
from partita.checkpoint.open import open_checkpoint
from partita.errors import DataError
from partita.inference.compiled_step import DecodeStep
from partita.inference.speculative import PromptLookup
from partita.model.decoder import Decoder
from partita.model.load import load_decoder

from .. import bounds, tiny_models

BACKENDS = partita_backends.names()
FEEDS = {"at once": [96], "in chunks": [7, 64, 25], "token by token": [1] * 96}
LONGROPE = ["phi3-longrope", "phi4-mini"]
ORIGINAL = 64  # their original context

Loader = Callable[..., tuple[Backend, Decoder]]
Judge = Callable[..., np.ndarray]


@pytest.fixture(scope="module")
def load(tiny_family: Callable[[str], Path]) -> Loader:
    """load(name, backend, dtype="float32"): a backend and the model on it, loaded once."""
    loaded: dict[tuple[str, str, str], tuple[Backend, Decoder]] = {}

    def get(name: str, backend: str, dtype: str = "float32") -> tuple[Backend, Decoder]:
        key = (name, backend, dtype)
        if key not in loaded:
            ops = partita_backends.load(backend, dtype=dtype)
            loaded[key] = ops, load_decoder(ops, open_checkpoint(tiny_family(name)))
        return loaded[key]

    return get


@pytest.fixture(scope="module")
def judge(tiny_family: Callable[[str], Path]) -> Judge:
    """judge(name, count=96): transformers' logits of one call over the first tokens."""
    known: dict[tuple[str, int], np.ndarray] = {}

    def get(name: str, count: int = tiny_models.TOKENS) -> np.ndarray:
        if (name, count) not in known:
            folder = tiny_family(name)
            known[name, count] = tiny_models.reference_logits(folder, tiny_models.tokens(folder, count))
        return known[name, count]

    return get


@pytest.fixture(scope="module")
def text(tiny_family: Callable[[str], Path]) -> list[int]:
    return tiny_models.tokens(tiny_family("llama"))


def spec_of(
    ops: Backend, model: Decoder, kv: str = "auto", context: int | None = None, chunk: int = DEFAULT_CHUNK
) -> CacheSpec:
    bits = 32 if ops.decode_dtype == "float32" else 16
    return plan(model.config, KVFormat.parse(kv, dense_bits=bits), context=context, chunk=chunk)


def fed(ops: Backend, model: Decoder, spec: CacheSpec, tokens: Sequence[int], steps: Sequence[int]) -> np.ndarray:
    """Logits (T, V) through one cache, in steps of these lengths."""
    cache, found, start = Cache(ops, spec), [], 0
    for count in steps:
        part = ops.array(np.array([tokens[start : start + count]], np.int32))
        found.append(ops.to_numpy(model(ops, part, cache, every=True))[0])
        start += count
    return np.concatenate(found)


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.square(x).mean()))


def typical(x: np.ndarray) -> float:
    """The root mean square of logits (T, V) at half of the tokens, at most."""
    return float(np.median(np.sqrt(np.square(x).mean(-1))))


@pytest.mark.parametrize("feed", FEEDS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", tiny_models.NAMES)
def test_logits_equal_transformers(
    load: Loader, judge: Judge, text: list[int], name: str, backend: str, feed: str
) -> None:
    ops, model = load(name, backend)
    steps = FEEDS[feed]
    ours = fed(ops, model, spec_of(ops, model, chunk=max(steps)), text, steps)
    bounds.assert_near(ours, judge(name), bounds.logits(model.config))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", LONGROPE)
def test_longrope_takes_its_factors_by_the_caches_context(
    load: Loader, judge: Judge, text: list[int], name: str, backend: str
) -> None:
    """transformers chooses by the length of each call, and keys that it cached earlier keep the factors of then; a
    single call has one kind for all its positions. So the judge of the long factors is one call of 96 tokens, longer
    than the original 64 (the test above, where the context is the trained maximum), also for our first positions and
    our single tokens; the judge of the short ones is one call of 64 tokens, beside a cache that never holds more."""
    ops, model = load(name, backend)
    short = spec_of(ops, model, context=ORIGINAL)
    long, error = spec_of(ops, model, context=ORIGINAL + 1), bounds.logits(model.config)
    for steps in ([ORIGINAL], [1] * ORIGINAL):
        ours = fed(ops, model, short, text, steps)
        bounds.assert_near(ours, judge(name, ORIGINAL), error)
    ours = fed(ops, model, long, text, [ORIGINAL])
    bounds.assert_near(ours, judge(name)[:ORIGINAL], error)
    assert np.abs(judge(name)[:ORIGINAL] - judge(name, ORIGINAL)).max() > 0.1  # the two are not the same


@pytest.mark.parametrize(
    "name",
    [
        "smollm3",
        "gemma2",
        "phi4-mini",
        "olmo3",
        "gpt_oss",
        "exaone4",
        "glm4",
        "hunyuan",
        "ministral3",
        "cohere2",
        "muse_glimmer",
        "muse_glimmer-odd",
        "lfm3",
        "laguna",
        "laguna-elements",
    ],
)
def test_a_bounded_context_does_not_depend_on_the_feed(load: Loader, text: list[int], name: str) -> None:
    """A ring of 32 tokens that turns, with 4 sinks: anchored where a layer rotates, as they are where it does not."""
    ops, model = load(name, "numpy")
    spec = spec_of(ops, model, context=32, chunk=24)
    at_once = fed(ops, model, spec, text, [24] * 4)
    one_by_one = fed(ops, model, spec, text, [1] * 96)
    bounds.assert_near(at_once, one_by_one, bounds.logits(model.config))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kv", ["k8v8", "k8v4"])
def test_heads_of_96_are_packed_in_groups_of_32(
    load: Loader, judge: Judge, text: list[int], backend: str, kv: str
) -> None:
    ops, model = load("phi3", backend)
    ours = fed(ops, model, spec_of(ops, model, kv, chunk=32), text, [32, 32, 32])
    error = rms(ours - judge("phi3")) / rms(judge("phi3"))
    assert 1e-3 < error < (0.02 if kv == "k8v8" else 0.2)


def test_a_group_that_does_not_divide_a_head_is_refused(load: Loader) -> None:
    ops, model = load("phi3", "numpy")
    with pytest.raises(DataError, match=r"k8v8:64.*96"):
        spec_of(ops, model, "k8v8:64")
    with pytest.raises(DataError, match=r"power of two.*96"):
        spec_of(ops, model, "k8v8h")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "numpy"])
@pytest.mark.parametrize("name", tiny_models.NAMES)
def test_half_precision_stays_half_precision(
    load: Loader,
    judge: Judge,
    tiny_family: Callable[[str], Path],
    text: list[int],
    name: str,
    backend: str,
    dtype: str,
) -> None:
    """Numbers of the config take the residual stream's dtype; logits stay near the exact ones. A layer rounds twelve
    times one after another; in the mean square that is half of what an entry may be off. Where two experts were so near
    each other that rounding chose between them, a token is far off, and less so what reads it: half of the tokens are
    looked at. What a recurrent layer makes of a small output, which its norm makes large, is in no such number: there
    transformers in the same dtype says how far is near."""
    ops, model = load(name, backend, dtype)
    spec = spec_of(ops, model)
    part = ops.array(np.array([text], np.int32))
    hidden = model._hidden(ops, part, Cache(ops, spec))
    assert str(hidden.dtype).endswith(ops.dtype)
    ours, exact = fed(ops, model, spec, text, [95, 1]), judge(name)
    error = bounds.drift(12 * len(model.config.layers), dtype) / 2 * rms(exact)
    if name in tiny_models.RECURRENT:
        theirs = tiny_models.reference_logits(tiny_family(name), text, dtype)
        assert typical(ours - exact) <= max(error, 4 * typical(theirs - exact))
    elif "experts" in name or name in tiny_models.EXPERTS:
        assert typical(ours - exact) <= 4 * error
    else:
        assert rms(ours - exact) <= (error if name in tiny_models.DENSE else 4 * error)


@pytest.mark.parametrize(
    "name",
    [
        "smollm3",
        "gemma2",
        "phi4-mini",
        "olmo3",
        "granite",
        "qwen3_moe",
        "gpt_oss",
        "hunyuan",
        "ministral3",
        "muse_glimmer",
        "muse_glimmer-odd",
        "gemma4",
        "lfm2_moe",
        "lfm3",
        "laguna",
        "laguna-elements",
    ],
)
def test_a_compiled_step_equals_the_eager_one(load: Loader, judge: Judge, text: list[int], name: str) -> None:
    ops, model = load(name, "mlx")
    cache = Cache(ops, spec_of(ops, model))
    model.feed(ops, ops.array(np.array([text[:90]], np.int32)), cache)
    step = DecodeStep(ops, model, cache)
    ours = [ops.to_numpy(step(ops.array(np.array([[token]], np.int32))))[0] for token in text[90:]]
    bounds.assert_near(ours, judge(name)[90:], bounds.logits(model.config))


@pytest.mark.parametrize("name", tiny_models.NAMES)
def test_speculative_replies_equal_plain_ones(tiny_family: Callable[[str], Path], text: list[int], name: str) -> None:
    """Across the window: drafts are written and taken back."""
    model = partita.load(tiny_family(name), backend="torch", dtype="float32")
    prompt = text[:20] * 2
    replies = []
    for draft in (None, PromptLookup(count=4)):
        pieces = model.session(prefixes=None, slack=8).generate(prompt, max_tokens=24, draft=draft)
        replies.append([piece.token.id for piece in pieces if piece.token is not None])
    assert replies[0] == replies[1]
