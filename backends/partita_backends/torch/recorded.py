"""A step recorded once and computed again by its operations alone: what a CUDA graph is to a GPU, on a CPU.

A token is a thousand small operations, and Python between them (layers, views, checks) costs as much as a small model's
products. While a function is recorded, each operation that computes is kept with the tensors it reads and writes; to
compute it again is to call them in turn, on the same memory. Views cost nothing then, nor does what the host decides.

Not here: what a step is (`partita.inference.compiled_step`). Invariants: what is recorded depends on its tensors alone;
whatever reads them on the host, as a kernel does, is called through `run`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

Tensor = torch.Tensor
Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]

_RECORDING: ContextVar[_Recording | None] = ContextVar("recording", default=None)


def run(function: Callable[..., None], *arguments: Any) -> None:
    """Call it now, and again whenever the step that is being recorded is computed again.

    It writes what it computes into arguments: tensors, or numpy arrays over their memory.
    """
    recording = _RECORDING.get()
    if recording is None:
        function(*arguments)
    else:
        recording.run(function, arguments)


def recorded(function: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    """As `Backend.compile`: recorded when it is first called."""
    made: list[Replayed] = []

    def call(tokens: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        if made:
            return made[0](tokens, *state)
        step, results = _record(function, tokens.clone(), *state)
        made.append(step)
        return results

    return call


class Replayed:
    """A step that `replay` computes again. inputs: the tensors that it reads; results: those that it leaves."""

    def __init__(self, replay: Callable[[], None], inputs: Sequence[Tensor], results: Sequence[Tensor]):
        self._replay, self._inputs, self._results = replay, inputs, results

    def __call__(self, *given: Tensor) -> tuple[Tensor, ...]:
        for held, x in zip(self._inputs, given, strict=True):
            if held.data_ptr() != x.data_ptr():
                held.copy_(x)
        self._replay()
        return self._results[0].clone(), *self._results[1:]


def _record(function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> tuple[Replayed, tuple[Tensor, ...]]:
    """The step, and the results of this first time."""
    recording = _Recording()
    token = _RECORDING.set(recording)
    try:
        with recording:
            results = function(*inputs)
    finally:
        _RECORDING.reset(token)
    return Replayed(recording.replay, inputs, results), (results[0].clone(), *results[1:])


class _Recording(TorchDispatchMode):
    """Collects operations as they are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._paused = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """torch would wrap what follows to keep its compiler out, and import that for it: 2 s before the second token.
        Nothing here is compiled."""
        return False

    def replay(self) -> None:
        for function, arguments, options in self.calls:
            function(*arguments, **options)

    def run(self, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        if self._paused:
            function(*arguments)
            return
        self._paused = True
        try:
            function(*arguments)
        finally:
            self._paused = False
        self.calls.append((function, arguments, {}))

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = function(*args, **kwargs)
        if self._paused:
            return found
        if torch.Tag.data_dependent_output in function.tags:
            raise RuntimeError(f"{function} reads a number on the host: what is recorded must not depend on it")
        if function._schema.is_mutable:
            self.calls.append((function, args, kwargs))
            return found
        results = list(_tensors(found))
        sources = {0, *(_memory(x) for x in _tensors((args, kwargs)))}
        if all(_memory(x) in sources for x in results) or function in _UNSET:
            return found  # a view, or memory that nothing has written to
        if function in _COPIES:
            self.calls.append((Tensor.copy_, (found, args[0]), {}))
        elif (out := _into(function)) is not None:
            self.calls.append((out, args, {**kwargs, **dict(zip(_outputs(out), results, strict=True))}))
        else:
            self.calls.append((_again, (function, args, kwargs, results), {}))
        return found


_UNSET = {torch.ops.aten.empty.memory_format, torch.ops.aten.empty_strided.default, torch.ops.aten.new_empty.default}
_COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.clone.default}


def _memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _tensors(x: Any) -> Iterable[Tensor]:
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, (tuple, list)):
        for each in x:
            yield from _tensors(each)
    elif isinstance(x, dict):
        yield from _tensors(tuple(x.values()))


def _into(function: Any) -> Any:
    """The form of an operation that writes into given tensors, or None where it has none."""
    wanted = [(a.name, str(a.type)) for a in function._schema.arguments]
    for name in function.overloadpacket.overloads():
        other = getattr(function.overloadpacket, name)
        arguments = other._schema.arguments
        if _outputs(other) and [(a.name, str(a.type)) for a in arguments if not a.is_out] == wanted:
            return other
    return None


def _outputs(function: Any) -> list[str]:
    return [a.name for a in function._schema.arguments if a.is_out]


def _again(function: Any, args: Any, kwargs: Any, results: Sequence[Tensor]) -> None:
    """Compute an operation that has no such form."""
    found = function(*args, **kwargs)
    for held, x in zip(results, _tensors(found), strict=True):
        held.copy_(x)
