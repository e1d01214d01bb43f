"""What processes that train together have in common on every backend: who is first, how long one waits for the others,
and what is said when they do not come.

Not here: the libraries' own ways of sending, which each backend has.
"""

from __future__ import annotations

import os

from partita.errors import TrainingError

MINUTES = 15  # the first process writes checkpoints and samples while others wait for it

SILENT = (
    f"a process of this run has not answered for {MINUTES} minutes: look at what it says, then --resume all of them"
)


def ended(reason: object) -> TrainingError:
    """For a connection that is gone."""
    said = " ".join(str(reason).split())[:200]
    return TrainingError(
        f"another process of this run has ended or cannot be reached: look at what it says, then --resume all of them "
        f"({said})"
    )


def first() -> bool:
    """Whether this is the first process, or the only one, as launchers say it: to be asked before a backend is loaded."""
    ranks = ["MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK"]
    if os.environ.get("WORLD_SIZE", "1") != "1":
        ranks.append("RANK")
    return all(os.environ.get(name, "0") == "0" for name in ranks)
