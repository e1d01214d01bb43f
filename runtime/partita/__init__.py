"""partita: an on-device runtime for language models. One model and one cache, computed by MLX, torch or numpy.

    import partita
    model = partita.load()
    for piece in partita.generate(model, "What is the capital of France?"):
        print(piece.text, end="")

`load` gives a `LanguageModel`. `generate` answers one prompt, `chat` goes on with a conversation, `logits` gives the
scores of every next token; `finetune` trains an adapter, `convert` writes other layouts. `model.session()` is a
`Session` that keeps its `Cache`, for whoever wants to hold, save and restore it. How tokens are chosen is a `Sampling`,
and replies come as `Piece` after `Piece`. Everything that can go wrong for a reason of the user's is a `PartitaError`
of one line.

Threads: a `LanguageModel` is not changed by use, but its backend and the cache of prompt beginnings that its sessions
share are made for one thread at a time: let one thread at a time compute with a model, or give each thread a model of
its own. A `Session` and an iterator of pieces belong to one conversation. Functions here keep no state.

Stability: what `__all__` names, with its keywords and the fields of what it returns, changes only with a line in
CHANGELOG.md; before 1.0 that may happen in any minor version. Everything in submodules may change at any time.

Importing this package imports no array library; a backend is imported when a model is loaded.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "Cache",
    "LanguageModel",
    "PartitaError",
    "Piece",
    "Sampling",
    "Session",
    "__version__",
    "chat",
    "convert",
    "finetune",
    "generate",
    "load",
    "logits",
]

if TYPE_CHECKING:
    from .cache.state import Cache
    from .errors import PartitaError
    from .inference.sampling import Sampling
    from .language_model import LanguageModel, Piece, Session, load
    from .shortcuts import chat, convert, finetune, generate, logits


def __getattr__(name: str) -> Any:
    # composition root: modules are imported when they are named, so that starting stays fast
    if name == "Cache":
        return import_module(".cache.state", __name__).Cache
    if name == "PartitaError":
        return import_module(".errors", __name__).PartitaError
    if name == "Sampling":
        return import_module(".inference.sampling", __name__).Sampling
    if name in ("LanguageModel", "Piece", "Session", "load"):
        return getattr(import_module(".language_model", __name__), name)
    if name in ("chat", "convert", "finetune", "generate", "logits"):
        return getattr(import_module(".shortcuts", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
