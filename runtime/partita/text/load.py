"""A tokenizer from a model folder, from GGUF's metadata, or from a checkpoint of either form."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ..errors import CheckpointError, UnsupportedModel
from .tokenizer import Tokenizer


class Source(Protocol):
    """What is needed of a checkpoint. metadata: GGUF's keys and values, None for a folder."""

    @property
    def path(self) -> Path: ...

    @property
    def metadata(self) -> Mapping[str, Any] | None: ...

    def embedding_rows(self) -> int | None:
        """Rows of the embedding; None where there is none."""
        ...


def tokenizer_from_folder(path: Path | str) -> Tokenizer:
    """From a model folder: tokenizer.json, else tokenizer.model, and the configs beside it.

    Raises CheckpointError for missing or damaged files, UnsupportedModel for a vocabulary or a step of another
    kind: what the files say is judged before a library is given any of it.
    """
    from .from_folder import read_folder  # here, as either form brings a library that the other does not need

    return Tokenizer(*read_folder(Path(path)))


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """From a GGUF file's metadata, keys as in the file (`tokenizer.ggml.model`, `.tokens`, `.merges`, ...).

    Raises CheckpointError for missing or contradictory keys, UnsupportedModel for an unknown kind or pre-tokenizer.
    """
    from .from_gguf import read_metadata

    return Tokenizer(*read_metadata(metadata))


def load_tokenizer(source: Source) -> Tokenizer:
    """The tokenizer of a checkpoint, judged beside its embedding.

    Raises CheckpointError and UnsupportedModel as above, and CheckpointError where texts become ids that the embedding
    lacks. A control token may lie beyond it (Gemma 3's of images do, in its models without): a prompt that has one is
    refused then.
    """
    if source.metadata is None:
        tokenizer = tokenizer_from_folder(source.path)
    else:
        try:
            tokenizer = tokenizer_from_gguf(source.metadata)
        except (CheckpointError, UnsupportedModel) as error:
            raise type(error)(f"{source.path.name}: {error}", field=error.field) from error
    size, rows = tokenizer.vocab_size, source.embedding_rows()
    if rows is not None and rows < size and {*range(rows, size)} - {*tokenizer.controls.values()}:
        raise CheckpointError(
            f"{source.path.name}: its tokenizer has {size} tokens and its embedding {rows} rows, so "
            "they are of different models"
        )
    return tokenizer
