"""A split of training data as arrays: tokens of all documents in one array, with offsets. Knows no text.

Documents are cut at the maximum length as they arrive, and what is lost is counted. A document of which nothing is
left to train (its prompt alone fills the limit) is left out and counted, so that no loss is ever divided by zero.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np

from ..errors import DataError

MIN_LENGTH = 2  # a token, and one to be predicted from it


@dataclass(frozen=True)
class Statistics:
    """What became of a split's records.

    records: in the files. documents: to train on. tokens: in them. trained: tokens with a loss. truncated: documents
    cut at the maximum length. lost: tokens cut off these. skipped: documents left out, as nothing in them would be
    trained. split: documents more than records, where the template writes earlier turns differently (`<think>` left
    out). unopened: turns that lack the text with which the template opens a reply.
    """

    records: int = 0
    documents: int = 0
    tokens: int = 0
    trained: int = 0
    truncated: int = 0
    lost: int = 0
    skipped: int = 0
    split: int = 0
    unopened: int = 0

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Dataset:
    """tokens: int32 (N,). trained: bool (N,), False for each document's first token. offsets: int64 (D + 1,), where
    each document begins; document i is tokens[offsets[i] : offsets[i + 1]] of MIN_LENGTH … max_length tokens."""

    tokens: np.ndarray
    trained: np.ndarray
    offsets: np.ndarray
    max_length: int
    statistics: Statistics

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def document(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Views of the tokens of document i and of their flags."""
        part = slice(self.offsets[i], self.offsets[i + 1])
        return self.tokens[part], self.trained[part]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each document, int64 (D,)."""
        return np.diff(self.offsets)

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the tokens, their flags and their documents, for a run that is to go on with the same data."""
        digest = hashlib.sha256()
        for values in (self.tokens.astype("<i4"), np.packbits(self.trained), self.offsets.astype("<i8")):
            digest.update(np.ascontiguousarray(values).data)
        return digest.hexdigest()[:32]


class DatasetBuilder:
    """Takes documents one by one; memory is that of the arrays, 5 bytes a token."""

    def __init__(self, max_length: int) -> None:
        if max_length < MIN_LENGTH:
            raise DataError(f"`max_length` must be >= {MIN_LENGTH}, got {max_length}", field="max_length")
        self.max_length = max_length
        self._tokens, self._trained, self._offsets = array("i"), bytearray(), array("q", [0])
        self._counts = dict.fromkeys(asdict(Statistics()), 0)

    def add_record(self, documents: Sequence[tuple[Sequence[int], Sequence[bool]]], *, unopened: int = 0) -> None:
        """The documents of one record: (ids, flags)."""
        self._counts["records"] += 1
        self._counts["split"] += len(documents) - 1
        self._counts["unopened"] += unopened
        for ids, trained in documents:
            self._add(ids, trained)

    def _add(self, ids: Sequence[int], trained: Sequence[bool]) -> None:
        counts = self._counts
        flags = bytearray(trained[: self.max_length])
        flags[:1] = b"\0" * len(flags[:1])  # nothing predicts a document's first token
        if not any(flags):
            counts["skipped"] += 1
            return
        kept = ids[: self.max_length]
        counts["truncated"] += len(kept) < len(ids)
        counts["lost"] += len(ids) - len(kept)
        counts["documents"] += 1
        counts["tokens"] += len(kept)
        counts["trained"] += sum(flags)
        self._tokens.extend(kept)
        self._trained += flags
        self._offsets.append(len(self._tokens))

    def build(self) -> Dataset:
        tokens = np.frombuffer(self._tokens, np.int32) if self._tokens else np.zeros(0, np.int32)
        trained = np.frombuffer(self._trained, np.bool_) if self._trained else np.zeros(0, np.bool_)
        offsets = np.frombuffer(self._offsets, np.int64)
        return Dataset(tokens, trained, offsets, self.max_length, Statistics(**self._counts))
