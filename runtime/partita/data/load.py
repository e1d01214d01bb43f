"""Training data: from what a user gives as DATA to token arrays of each split, with what became of it in numbers.

`load_data` once, then `Batches` of a split. Knows no model but its tokenizer and template; the same files, tokenizer,
lengths and seed give the same tokens on any day.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError, TemplateError
from ..sources.store import Progress
from ..text.chat_template import ChatTemplate
from ..text.tokenizer import Tokenizer
from . import files as data_files
from .batches import Batch, Batches
from .dataset import MIN_LENGTH, Dataset, DatasetBuilder, Statistics
from .encode import Encoder

__all__ = ["VALID_FRACTION", "Batch", "Batches", "Dataset", "Splits", "Statistics", "load_data"]

VALID_FRACTION = 0.05
_HELD_OUT = 1  # beside the seed, so that the share held out and the order of batches are drawn apart

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Splits:
    """valid, test: None where there is none, or nothing in it can be used. held_out: `valid` was taken out of the
    training records. notes: lines for a person, on what is in the data and was not read, or not as someone may mean
    it."""

    train: Dataset
    valid: Dataset | None
    test: Dataset | None
    held_out: bool
    notes: tuple[str, ...] = ()

    def statistics(self) -> dict[str, dict[str, int]]:
        """The numbers of each split that is there, for a report."""
        named = {"train": self.train, "valid": self.valid, "test": self.test}
        return {name: data.statistics.as_dict() for name, data in named.items() if data is not None}


def load_data(
    source: str | Path,
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    *,
    max_length: int,
    valid_fraction: float = VALID_FRACTION,
    seed: int = 0,
    variables: Mapping[str, Any] | None = None,
    control_tokens: bool = False,
    on_progress: OnProgress = lambda done, total: None,
    progress: Progress | None = None,
    offline: bool = False,
) -> Splits:
    """Read, check, tokenize and mask the data of a run.

    source: see data_files. template: None for a base model, for which chats are refused. max_length: tokens of a
    document at most. valid_fraction: share of the training records (of a text file: of its end) that is held out where
    no file is given for validation; 0 holds out nothing. variables: what the template is given besides.
    control_tokens: whether their literals in plain text are tokens, not letters. Those of chats are letters.
    on_progress(done, total): bytes of files tokenized. progress: of fetching from the Hub.

    Raises DataError (a bad record by its file and line; nothing to train on), SourceError.
    """
    if not 0 <= valid_fraction < 1:
        raise DataError(f"`valid_fraction` must be >= 0 and < 1, got {valid_fraction:g}", field="valid_fraction")
    if seed < 0:
        raise DataError(f"`seed` must be >= 0, got {seed}", field="seed")
    files = data_files.find(source, progress=progress, offline=offline)
    encoder = Encoder(tokenizer, template, variables, control_tokens=control_tokens)
    reader = _Reader(encoder, tokenizer, max_length, _Meter(files, on_progress))
    hold = valid_fraction if not files.valid else 0.0
    train, held = reader.read(files.train, hold, seed)
    valid, test = (reader.read(part, 0.0, seed)[0] if part else None for part in (files.valid, files.test))
    if not len(train):
        raise DataError(_nothing(source, train, max_length))
    valid = _used(held if hold else valid)
    return Splits(train, valid, _used(test), bool(hold) and len(held) > 0, encoder.notes.lines())


def _used(data: Dataset | None) -> Dataset | None:
    return data if data is not None and len(data) else None


def _nothing(source: str | Path, train: Dataset, max_length: int) -> str:
    counts = train.statistics
    if not counts.records:
        return f"{source} holds no records to train on"
    return (
        f"{source}: in none of {counts.skipped} documents is anything to be trained within {max_length} tokens: "
        "their prompts alone fill them; raise `max_length`"
    )


class _Meter:
    """Adds up the bytes of several files."""

    def __init__(self, files: data_files.DataFiles, tell: OnProgress) -> None:
        self._tell, self._before = tell, 0
        self._total = sum(path.stat().st_size for path in files.every)

    def at(self, through: int) -> None:
        self._tell(min(self._before + through, self._total), self._total)

    def file_done(self, path: Path) -> None:
        self._before += path.stat().st_size
        self.at(0)


@dataclass(frozen=True)
class _Reader:
    encoder: Encoder
    tokenizer: Tokenizer
    max_length: int
    meter: _Meter

    def read(self, paths: Sequence[Path], hold: float, seed: int) -> tuple[Dataset, Dataset]:
        """A split, and the share of it that is held out."""
        kept, held = DatasetBuilder(self.max_length), DatasetBuilder(self.max_length)
        lines = [path for path in paths if path.suffix != ".txt"]
        chosen = iter(_choose(sum(map(data_files.count, lines)) if hold else 0, hold, seed).tolist())
        for path in paths:
            if path.suffix == ".txt":
                self._text(path, hold, kept, held)
            else:
                for found in data_files.records(path):
                    self._record(found, held if next(chosen, False) else kept)
            self.meter.file_done(path)
        return kept.build(), held.build()

    def _record(self, found: data_files.Found, into: DatasetBuilder) -> None:
        try:
            documents = self.encoder.encode(found.record, found.place)
        except (DataError, TemplateError) as error:
            raise DataError(f"{found.place}: {error}") from error
        unopened = sum(document.unopened for document in documents)
        into.add_record([(document.ids, document.trained) for document in documents], unopened=unopened)
        self.meter.at(found.through)

    def _text(self, path: Path, hold: float, kept: DatasetBuilder, held: DatasetBuilder) -> None:
        """A long text in documents of the maximum length; what is held out is its end."""
        blocks = data_files.blocks(path)
        size, characters = path.stat().st_size, sum(map(len, blocks))
        ids = self.encoder.long_text(blocks, lambda done: self.meter.at(size * done // characters), str(path))
        tail = round(len(ids) * hold)
        tail = 0 if tail < MIN_LENGTH or len(ids) - tail < MIN_LENGTH else tail
        bos = self.tokenizer.bos_id if self.tokenizer.adds_bos else None
        for part, into in ((ids[: len(ids) - tail], kept), (ids[len(ids) - tail :], held)):
            for document in cut_text(part, into.max_length, bos):
                into.add_record([document])


def cut_text(ids: Sequence[int], max_length: int, bos: int | None) -> Iterator[tuple[list[int], list[bool]]]:
    """A text's ids as documents of at most max_length tokens, each with a BOS in front where there is one.

    A document begins with the last token of the one before, so that every token but the first is trained exactly once.
    """
    front = [] if bos is None else [bos]
    room = max_length - len(front)
    if room < MIN_LENGTH:
        raise DataError(f"`max_length` must be >= {len(front) + MIN_LENGTH}, got {max_length}", field="max_length")
    for begin in range(0, max(1, len(ids) - 1), room - 1):
        piece = list(ids[begin : begin + room])
        yield [*front, *piece], [False] * len(front) + [begin == 0] + [True] * (len(piece) - 1)


def _choose(count: int, fraction: float, seed: int) -> np.ndarray:
    """Which of `count` records are held out, bool (count,): a share of them, at least one and never all."""
    mask = np.zeros(count, np.bool_)
    if fraction and count > 1:
        random = np.random.default_rng([seed, _HELD_OUT])
        mask[random.choice(count, min(max(1, round(count * fraction)), count - 1), replace=False)] = True
    return mask
