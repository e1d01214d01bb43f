"""Whether a cache fits before any of it is allocated: which format `auto` means, how much context, and what would help.

Judges numbers only: bytes of a full cache (`spec.cache_bytes`, exact) against the device's free memory less
RESERVE, which is left for activations and for everybody else. Never allocates, and never chooses what was asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypedDict, Unpack

from ..errors import ContextError, DataError, MemoryBudgetError
from ..model.config import ModelConfig
from ..units import memory_size
from .kv_format import KVFormat
from .spec import CacheSpec, bytes_per_token, cache_bytes, plan

RESERVE = 256 * 2**20
SMALLER = ("16", "k8v8", "k8v4", "k4v4h")
"""What kv "auto" steps down to, in this order: each costs more quality than the one before."""
STEP = 1024  # tokens; context "auto" is a multiple of this


class Layout(TypedDict, total=False):
    """What `plan` takes beside the format and the context."""

    sinks: int | None
    chunk: int
    slack: int


@dataclass(frozen=True)
class Choice:
    """What a cache will be. text: what was chosen and why, one line, where it is not what a person would expect."""

    spec: CacheSpec
    bytes: int
    """Of the cache when its context is full."""
    text: str | None = None


def full_bytes(spec: CacheSpec, batch: int = 1) -> int:
    """Bytes of a cache whose every ring is full, and which keeps all checkpoints that it may."""
    furthest = max((span.sinks + (spec.ring(span) or 0) for span in spec.spans), default=0)
    return cache_bytes(spec, furthest, batch) + batch * spec.checkpoints * spec.state_bytes


def choose(
    config: ModelConfig,
    kv: str,
    dense: KVFormat,
    free: int,
    *,
    context: int | str | None = None,
    batch: int = 1,
    **layout: Unpack[Layout],
) -> Choice:
    """The cache that was asked for, or with `auto` the best that fits. layout: sinks, chunk, slack as in `plan`.

    kv: a format's name. dense: `auto` where nothing presses. free: bytes. context: tokens, "auto" or None (the
    trained maximum). Raises MemoryBudgetError with the settings that would help, and what `plan` raises.
    """
    if isinstance(context, str) and context != "auto":
        raise ContextError(f"`context` must be a number of tokens or auto, got {context!r}", field="context")
    budget = max(free - RESERVE, 0)
    wanted = dense if kv == "auto" else KVFormat.parse(kv, dense_bits=dense.key_bits)
    formats = [wanted, *_smaller(config, wanted)] if kv == "auto" else [wanted]
    if context == "auto":
        return _widest(config, formats, budget, batch, layout)
    first = plan(config, wanted, context=context if isinstance(context, int) else None, **layout)
    needed = full_bytes(first, batch)
    if needed <= budget:
        return Choice(first, needed)
    for smaller in formats[1:]:
        spec = plan(config, smaller, context=first.context, **layout)
        needs = full_bytes(spec, batch)
        if needs <= budget:
            return Choice(spec, needs, _stepped_down(first, needed, smaller, needs, free))
    raise MemoryBudgetError(_refusal(config, first, needed, free, batch, layout), field="context")


def _smaller(config: ModelConfig, than: KVFormat) -> list[KVFormat]:
    """Formats of SMALLER that this head_dim allows and that take less than another."""
    found: list[KVFormat] = []
    for name in SMALLER:
        kv = KVFormat.parse(name)
        try:
            spec = plan(config, kv)
        except DataError:
            continue
        if bytes_per_token(spec) < bytes_per_token(plan(config, than)):
            found.append(kv)
    return found


def _widest(config: ModelConfig, formats: Iterable[KVFormat], budget: int, batch: int, layout: Layout) -> Choice:
    """The trained maximum in the first format that fits it, else as much as the smallest format allows."""
    formats = list(formats)
    best: Choice | None = None
    for kv in formats:
        context = _largest(config, kv, budget, batch, layout)
        if context is None:
            continue
        spec = plan(config, kv, context=context, **layout)
        if best is None or context > (best.spec.context or 0):
            best = Choice(spec, full_bytes(spec, batch))
        if context == config.max_positions:
            break
    if best is None:
        least = ((layout.get("sinks") or 0) // STEP + 1) * STEP
        spec = plan(config, formats[-1], context=min(least, config.max_positions), **layout)
        needs = full_bytes(spec, batch)
        raise MemoryBudgetError(
            f"a cache of {spec.context} tokens at `kv` {spec.kv} needs {memory_size(needs)}, "
            f"{memory_size(budget)} can be used: free some memory or take a smaller model",
            field="context",
        )
    plain = best.spec.context == config.max_positions and best.spec.kv == formats[0]
    found, needs = f"{best.spec.context} tokens at `kv` {best.spec.kv}", memory_size(best.bytes)
    text = f"the context is {found} here: that needs {needs}, {memory_size(budget)} can be used"
    return best if plain else Choice(best.spec, best.bytes, text)


def _largest(config: ModelConfig, kv: KVFormat, budget: int, batch: int, layout: Layout) -> int | None:
    """The most tokens that fit: the trained maximum or a multiple of STEP; None if not even one step does."""

    def fits(context: int) -> bool:
        return full_bytes(plan(config, kv, context=context, **layout), batch) <= budget

    if fits(config.max_positions):
        return config.max_positions
    none = low = (layout.get("sinks") or 0) // STEP  # in steps: so few have no room beside the sinks
    high = config.max_positions // STEP
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle * STEP) else (low, middle - 1)
    return low * STEP if low > none else None


def _stepped_down(first: CacheSpec, needed: int, kv: KVFormat, needs: int, free: int) -> str:
    return (
        f"`kv` auto is {kv} here: a cache of {first.context} tokens needs {memory_size(needed)} at {first.kv}, "
        f"{memory_size(needs)} at {kv}; {memory_size(free)} are free, of which {memory_size(RESERVE)} are kept back"
    )


def _refusal(config: ModelConfig, spec: CacheSpec, needed: int, free: int, batch: int, layout: Layout) -> str:
    """The numbers, and only settings that would make it fit."""
    budget = max(free - RESERVE, 0)
    helps: list[str] = []
    for kv in _smaller(config, spec.kv):
        if full_bytes(plan(config, kv, context=spec.context, **layout), batch) <= budget:
            helps.append(f"`kv` {kv}")
            break
    context = _largest(config, spec.kv, budget, batch, layout)
    if context is not None:
        helps.append(f"`context` {context}")
    rows = f" for each of {batch} rows" if batch > 1 else ""
    return (
        f"a cache of {spec.context} tokens{rows} at `kv` {spec.kv} needs {memory_size(needed)}, "
        f"{memory_size(free)} are free ({memory_size(RESERVE)} of them are kept back): "
        + (f"try {' or '.join(helps)}" if helps else "free some memory or take a smaller model")
    )
