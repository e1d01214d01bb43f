"""partita: an on-device runtime for language models. One model and one cache, computed by MLX, torch or numpy.

    import partita
    model = partita.load()
    for piece in partita.generate(model, "What is the capital of France?"):
        print(piece.text, end="")

Importing this package imports neither mlx nor torch; a backend is reached when a model is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Cache", "__version__", "generate", "load"]

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .cache.state import Cache
    from .language_model import LanguageModel, Message, Piece, load


def generate(
    model: LanguageModel, prompt: str | Sequence[Message], *, raw: bool = False, **options: Any
) -> Iterator[Piece]:
    """A reply to one prompt, piece by piece, in a fresh session. Of each piece `text` is what the model says; what it
    thinks is in `thought`, a tool that it calls in `call`.

    prompt: a user's message or a list of chat messages; raw: plain text to complete, all of it `text`. options:
    `sampling`, `max_tokens`, `stop`, `alternatives`, `on_progress` as in `Session.generate`; `context`, `sinks`, `kv`
    as in `LanguageModel.cache_spec`.
    """
    cache = {name: options.pop(name) for name in ("context", "sinks", "kv", "chunk", "slack") if name in options}
    ids = model.encode(prompt, raw=raw)
    reply = None if raw else model.reply_to(ids)
    return model.session(**cache).generate(ids, reply=reply, **options)


def __getattr__(name: str) -> Any:
    # composition root: heavy modules are reached when they are named, so that starting stays fast
    if name == "load":
        from .language_model import load

        return load
    if name == "Cache":
        from .cache.state import Cache

        return Cache
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
