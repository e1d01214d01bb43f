"""The errors partita raises on purpose. Apps catch `PartitaError` once and print its one line.

    PartitaError                a user can act on the message
    ├── SourceError             a model's name leads nowhere: no such path, no network, no space, no access
    ├── CheckpointError         a file is damaged, truncated or not what it says it is
    ├── UnsupportedModel        a well-formed model whose mathematics is not implemented
    ├── TemplateError           a chat template that cannot be rendered
    ├── ContextError            positions that the cache does not hold, or an impossible context
    ├── MemoryBudgetError       a request that cannot fit; the message carries the numbers and the settings
    ├── DataError               input text or settings that cannot be used
    ├── TrainingError           a run that must not go on: a non-finite loss
    └── BackendUnavailable      the backend or device asked for is not here

Messages name what, where and what to do, in one line. They quote files that nobody has vetted, so the root keeps
control characters and texts without end out of them.

`field` is the setting that an error is about, by its Python name ("context"), or None. Messages name settings in
backticks ("`context` must be >= 1, got 0: try `kv` k8v4"): only an app knows what a person types for them.
"""

import errno

from .printable import printable

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Numbers of an OSError where a full disk, a quota or a limit on file sizes ended a write."""


class PartitaError(Exception):
    """Root of every error partita raises on purpose. field: the setting it is about, by its Python name."""

    def __init__(self, message: str = "", *, field: str | None = None) -> None:
        super().__init__(printable(message))
        self.field = field


class SourceError(PartitaError):
    """A model's name leads nowhere, or its files cannot be fetched."""


class CheckpointError(PartitaError):
    """A checkpoint file is damaged, truncated, or not what it claims to be."""


class UnsupportedModel(PartitaError):
    """The checkpoint is well formed, but its architecture or a field of its config is not implemented."""


class TemplateError(PartitaError):
    """A chat template fails to compile or to render."""


class ContextError(PartitaError):
    """The cache does not hold the positions asked for, or a context of that size is impossible."""


class MemoryBudgetError(PartitaError):
    """The request cannot fit in memory."""


class DataError(PartitaError):
    """Input text or a setting that cannot be used."""


class TrainingError(PartitaError):
    """A training run that must not go on. What it had learnt before is in its checkpoints."""


class BackendUnavailable(PartitaError):
    """The backend or device asked for is not available on this machine."""
