"""What processes that compute together have in common on every backend: who started them, who is first, how long one
waits for the others, and what is said when they do not come.

Not here: the libraries' own ways of sending, which each backend has. Reads the environment, in which launchers say it.
"""

from __future__ import annotations

import os
from pathlib import Path

from partita.errors import TrainingError

MINUTES = 15  # the first process writes checkpoints and samples while others wait for it
SILENT = (
    f"a process of this run has not answered for {MINUTES} minutes: look at what it says, then `resume` all of them"
)

# backend, rank, number of processes; mlx.launch says no number
_LAUNCHERS = (
    ("mlx", "MLX_RANK", None),
    ("mlx", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("mlx", "PMI_RANK", "PMI_SIZE"),
    ("torch", "RANK", "WORLD_SIZE"),
)


def launched() -> tuple[str, int] | None:
    """(backend, rank) of a process that was started with others, by mlx.launch, mpirun or torchrun; None alone."""
    for backend, rank, size in _LAUNCHERS:
        if rank in os.environ and (_in_a_ring() if size is None else os.environ.get(size, "1") != "1"):
            return backend, int(os.environ[rank])
    return None


def _in_a_ring() -> bool:
    """mlx.launch gives a single process an empty list of hosts."""
    hosts = Path(os.environ.get("MLX_HOSTFILE", ""))
    return not hosts.is_file() or bool(hosts.read_text().strip())


def first() -> bool:
    """Whether this is the first process, or the only one."""
    found = launched()
    return found is None or found[1] == 0


def ended(reason: object) -> TrainingError:
    """For a connection that is gone."""
    said = " ".join(str(reason).split())[:200]
    return TrainingError(
        "another process of this run has ended or cannot be reached: look at what it says, then `resume` all of them "
        f"({said})"
    )
