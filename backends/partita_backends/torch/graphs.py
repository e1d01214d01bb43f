"""A step captured once as a CUDA graph and launched as a whole: a token costs the host one launch, not hundreds.

While a step is captured nothing is computed, so it must neither read a number on the host nor send one, and what it
leaves must lie where it lay; what the host decides is in the key that it was compiled for
(`partita.inference.compiled_step`). Not measured: no GPU was at hand. Tests follow a step on tensors without numbers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextvars import ContextVar

import torch

from .recorded import Replayed

Tensor = torch.Tensor
Step = Callable[..., tuple[Tensor, ...]]

_REASONS: ContextVar[list[str] | None] = ContextVar("reasons", default=None)


def refuse(why: str) -> None:
    """Said of the step that is being computed: it must not be captured. Nothing where none is going to be."""
    reasons = _REASONS.get()
    if reasons is not None:
        reasons.append(why)


def captured(function: Step) -> Step:
    """As `Backend.compile`: computed operation by operation when it is first called, captured when it is called again.

    The first time kernels are compiled, and libraries take the memory that they work in. Tokens are a copy then too:
    Triton compiles for how its arguments are aligned, and nothing can be compiled in a capture. A step of which
    something was refused is computed operation by operation every time, with a warning.
    """
    computed: list[list[str]] = []  # with what was refused
    made: list[Replayed] = []

    def call(*given: Tensor) -> tuple[Tensor, ...]:
        if not computed:
            computed.append([])
            return _judged(computed[0], function, given[0].clone(), *given[1:])
        if computed[0]:
            return function(*given)
        if not made:
            made.append(_capture(function, *given))
        return made[0](*given)

    return call


def _judged(reasons: list[str], function: Step, *given: Tensor) -> tuple[Tensor, ...]:
    """Computed, and what was refused of it added to the reasons."""
    token = _REASONS.set(reasons)
    try:
        results = _beside(function, *given)
    finally:
        _REASONS.reset(token)
    for why in dict.fromkeys(reasons):
        warnings.warn(f"steps are computed operation by operation: {why}", stacklevel=3)
    return results


def _beside(function: Step, *given: Tensor) -> tuple[Tensor, ...]:
    """Computed on a stream of its own, as what is captured will be, between what came before and what follows."""
    current, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(current)
    with torch.cuda.stream(side):
        results = function(*given)
    current.wait_stream(side)
    return results


def _capture(function: Step, tokens: Tensor, *state: Tensor) -> Replayed:
    """The graph; nothing has been computed yet. Other threads may use the GPU meanwhile."""
    inputs, graph = (tokens.clone(), *state), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        results = function(*inputs)
    return Replayed(graph.replay, inputs, results)
