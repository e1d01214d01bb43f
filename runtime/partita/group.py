"""Groups: the processes that compute together, as one of them sees them; one alone unless a launcher started more.

A group is an instance handed to what spreads its work, beside the backend whose arrays it sums, so that a run alone and
one of several are the same code. Not here: launching, which is torchrun's and mlx.launch's. Invariants: every process
makes the same calls in the same order, with arrays of the same shapes and dtypes; alone, nothing is sent.
"""

from __future__ import annotations

from typing import Protocol

from .arrays import A


class Group(Protocol[A]):
    """Sums and gathers are lazy where the library is: what comes of one is passed to `wait` before it is read."""

    @property
    def rank(self) -> int:
        """Of this process: 0 for the first one, or the only one."""
        ...

    @property
    def world_size(self) -> int:
        """The number of processes."""
        ...

    def all_sum(self, x: A) -> A:
        """x summed over the processes, the same on each: a new array of its shape and dtype."""
        ...

    def all_gather(self, x: A) -> A:
        """The x of every process in the order of ranks, along the first axis: (n, …) to (world_size · n, …)."""
        ...

    def wait(self, *arrays: A) -> None:
        """Until arrays that depend on sums or gathers are computed.

        Raises TrainingError where a process is gone or its connection is lost. One that is there and does not answer is
        waited for a bounded time; then this process ends with a line that says so.
        """
        ...


class Alone:
    """One process: every sum is its only term."""

    rank = 0
    world_size = 1

    def all_sum(self, x: A) -> A:
        return x

    def all_gather(self, x: A) -> A:
        return x

    def wait(self, *arrays: A) -> None:
        """There is nobody to wait for."""
