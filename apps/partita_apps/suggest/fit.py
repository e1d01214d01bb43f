"""Which models fit into so much memory, the best first, and what would help those that nearly do. Numbers alone.

A model needs its weights, the cache of a context in 16 bits and the RESERVE that `cache.budget` keeps back. It fits
comfortably where a quarter of the memory is left beside it. Of those that do, the one with most parameters is taken for
the best: nothing is known here of speed or of answers. Not here: where the memory is read, how it is shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from partita.cache.budget import RESERVE, choose, full_bytes
from partita.cache.kv_format import KVFormat
from partita.cache.spec import plan
from partita.errors import MemoryBudgetError

from .catalogue import USES, Model, Use

CONTEXT = 8192  # tokens, where none were asked for
COMFORT = 0.75
MOST = 8
FEW = 3  # names in a line below the table
SHORTEST = 0.25  # of a context: one that is shorter is no help
PLAIN, SMALLER = KVFormat.parse("16"), KVFormat.parse("k8v8")


@dataclass(frozen=True)
class Fit:
    """A model at a context of so many tokens. cache: bytes."""

    model: Model
    context: int
    cache: int

    @property
    def needs(self) -> int:
        return self.model.weights + self.cache + RESERVE

    @property
    def options(self) -> tuple[str, ...]:
        """What a command must be told for this context: without it, a cache is as long as a model was trained on."""
        return () if self.context == self.model.context else (f"--context {self.context}",)

    @property
    def command(self) -> str:
        return " ".join(("partita chat", self.model.name, *self.options))


@dataclass(frozen=True)
class Nearly:
    """A model that does not fit. helps: options of a command, each of which would make it fit."""

    fit: Fit
    helps: tuple[str, ...]


@dataclass(frozen=True)
class Suggestion:
    """rows: the best for each use, then the others by size. tight: models that fit with less than a quarter left, where
    those of rows leave more. considered: all of the use that were trained on so much context, those that need least
    first."""

    rows: tuple[Fit, ...]
    tight: tuple[Fit, ...]
    nearly: tuple[Nearly, ...]
    considered: tuple[Fit, ...]


def suggest(models: Iterable[Model], free: int, use: Use | None = None, context: int | None = None) -> Suggestion:
    """free: bytes. context None: CONTEXT, or a model's trained maximum where that is less; models that were trained on
    less than a number that is given are left out."""
    wanted = [model for model in models if (use is None or use in model.suits) and (context or 0) <= model.context]
    fits = sorted((at(model, context) for model in wanted), key=lambda fit: -fit.model.parameters)
    comfortable = [fit for fit in fits if fit.needs <= COMFORT * free]
    tight = [fit for fit in fits if COMFORT * free < fit.needs <= free]
    rows = _best_first(comfortable or tight, USES if use is None else (use,))
    nearly = [Nearly(fit, helps) for fit in fits if fit.needs > free and (helps := _helps(fit, free))]
    return Suggestion(
        tuple(rows),
        tuple(tight[:FEW] if comfortable else ()),
        tuple(nearly[:FEW]),
        tuple(sorted(fits, key=lambda fit: fit.needs)),
    )


def at(model: Model, context: int | None) -> Fit:
    tokens = min(CONTEXT, model.context) if context is None else context
    return Fit(model, tokens, full_bytes(plan(model.config, PLAIN, context=tokens)) + model.state)


def _best_first(fits: Sequence[Fit], uses: Sequence[Use]) -> list[Fit]:
    """The first of each use, then the others in their order; at most MOST."""
    best = [next((fit for fit in fits if use in fit.model.suits), None) for use in uses]
    return list(dict.fromkeys([*(fit for fit in best if fit is not None), *fits]))[:MOST]


def _helps(fit: Fit, free: int) -> tuple[str, ...]:
    """What makes a model fit that does not; nothing where its weights alone are too much."""
    config, budget = fit.model.config, free - fit.model.weights - fit.model.state
    found: list[str] = []
    if full_bytes(plan(config, SMALLER, context=fit.context)) <= budget - RESERVE:
        found.append(" ".join((*fit.options, f"--kv {SMALLER}")))
    try:
        widest = choose(config, str(PLAIN), PLAIN, budget, context="auto").spec.context
    except MemoryBudgetError:
        return tuple(found)
    if widest is not None and widest >= SHORTEST * fit.context:
        found.append(f"--context {widest}")
    return tuple(found)
