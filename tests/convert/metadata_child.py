"""A program: open GGUF files of hostile metadata, made by hypothesis. Run as `python metadata_child.py FOLDER COUNT`.

Types, counts and nesting are whatever they can be, and a file may be hundreds of megabytes of nothing (a hole on the
disk). Each is opened and every value asked for, or refused with one line, within SECONDS and ROOM bytes of memory, and
Ctrl-C is answered within ANSWERED seconds.
"""

from __future__ import annotations

import faulthandler
import json
import resource
import struct
import sys
import time
from pathlib import Path
from typing import Any

import fuzz_corpus
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from partita.checkpoint.gguf.names import config_from, generation_config_from
from partita.checkpoint.gguf.reader import open_gguf
from partita.errors import PartitaError

sys.path.append(str(Path(__file__).parents[1]))  # of the tests
from pulse import Pulse

from partita.text.load import tokenizer_from_gguf

SECONDS, ANSWERED, ROOM = 10, 2, 1 << 30
LARGEST_HOLE = 300 << 20
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}

Piece = bytes | int  # bytes, or the size of a hole

KEYS = [name for name, _, _ in fuzz_corpus.gguf_forms()["llama"][0]]
KEYS += ["split.count", "split.no", "tokenizer.ggml.scores", "general.tags", "general.author"]
NUMBERS = st.one_of(
    st.integers(0, 64),
    st.sampled_from([2**16, 2**20, 2**22 - 1, 2**22, 2**24, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1]),
)
KINDS = st.sampled_from([*range(13), 8, 9, 9])


def mostly(usual: st.SearchStrategy, other: st.SearchStrategy) -> st.SearchStrategy:
    return st.integers(0, 7).flatmap(lambda n: usual if n else other)


def text(raw: bytes) -> bytes:
    return struct.pack("<Q", len(raw)) + raw


def scalar(kind: int) -> st.SearchStrategy[list[Piece]]:
    return st.binary(min_size=SIZES[kind], max_size=SIZES[kind]).map(lambda raw: [raw])


def hole(kind: int, count: int) -> list[Piece]:
    """As many items as are announced, of zeros: strings without a letter, arrays without an item."""
    size = count * {8: 8, 9: 12}.get(kind, SIZES.get(kind, 1))
    return [struct.pack("<IQ", kind, count), min(size, LARGEST_HOLE)]


def written(kind: int) -> st.SearchStrategy[list[Piece]]:
    """A few items, and a count that may be another."""
    items = st.lists(value(kind, deep=True), max_size=4)
    return st.tuples(items, mostly(st.none(), NUMBERS)).map(
        lambda made: [
            struct.pack("<IQ", kind, len(made[0]) if made[1] is None else made[1]),
            *(piece for item in made[0] for piece in item),
        ]
    )


def value(kind: int, *, deep: bool = False) -> st.SearchStrategy[list[Piece]]:
    if kind in SIZES:
        return scalar(kind)
    if kind == 8:
        announced = st.tuples(st.binary(max_size=8), NUMBERS).map(lambda made: struct.pack("<Q", made[1]) + made[0])
        return mostly(st.binary(max_size=12).map(text), announced).map(lambda raw: [raw])
    if kind != 9:
        return st.binary(max_size=8).map(lambda raw: [raw])
    inner = KINDS if not deep else st.sampled_from([0, 6, 8, 9])
    made = st.deferred(lambda: inner.flatmap(written))
    return made if deep else made | st.tuples(KINDS, NUMBERS).map(lambda pair: hole(*pair)) | mostly(made, NESTS)


NESTS = st.tuples(st.integers(1, 300), NUMBERS).map(
    lambda pair: [struct.pack("<IQ", 9, 1) * pair[0] + struct.pack("<IQ", 0, pair[1])]
)
NAMES = st.sampled_from(KEYS).map(str.encode) | st.binary(max_size=6)
ENTRY = st.tuples(
    NAMES,
    mostly(KINDS, st.just(77)).flatmap(lambda kind: value(kind).map(lambda made: [struct.pack("<I", kind), *made])),
)
ENTRIES = st.lists(ENTRY, max_size=5, unique_by=lambda entry: entry[0])
FILES = st.tuples(ENTRIES, st.booleans(), mostly(st.none(), NUMBERS))


def write(path: Path, entries: list[tuple[bytes, list[Piece]]], keep: bool, announced: int | None) -> None:
    """keep: behind the keys of a valid model. announced: a number of keys that is not theirs."""
    known = {name for name, _ in entries}
    own = [key for key in fuzz_corpus.gguf_forms()["llama"][0] if key[0].encode() not in known] if keep else []
    count = len(own) + len(entries) if announced is None else announced
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 0, count))
        for name, kind, content in own:
            file.write(text(name.encode()) + struct.pack("<I", kind) + fuzz_corpus.gguf_value(kind, content))
        for name, pieces in entries:
            file.write(text(name))
            for piece in pieces:
                file.seek(piece, 1) if isinstance(piece, int) else file.write(piece)
        file.write(bytes(64))


def exercise(path: Path) -> str:
    try:
        metadata = open_gguf(path).metadata
    except PartitaError as error:
        return type(error).__name__
    outcome = "opened"
    uses: list[Any] = [lambda key=key: metadata[key] for key in metadata]
    uses += [lambda: config_from(metadata, {"token_embd.weight": (32, 32)}), lambda: tokenizer_from_gguf(metadata)]
    for use in (*uses, lambda: generation_config_from(metadata)):
        try:
            use()
        except PartitaError:
            outcome = "refused later"
    return outcome


def main(folder: Path, count: int) -> None:
    outcomes: dict[str, int] = {}
    slowest, pulse = 0.0, Pulse()
    pages = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()

    @settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(FILES)
    def run(made: tuple[list[tuple[bytes, list[Piece]]], bool, int | None]) -> None:
        nonlocal slowest
        write(folder / "m.gguf", *made)
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        begun = time.perf_counter()
        with pulse:
            outcome = exercise(folder / "m.gguf")
        slowest = max(slowest, time.perf_counter() - begun)
        faulthandler.cancel_dump_traceback_later()
        assert pulse.longest < ANSWERED
        outcomes[outcome] = outcomes.get(outcome, 0) + 1

    # the files themselves are mapped, which is address space too
    resource.setrlimit(resource.RLIMIT_AS, (pages + ROOM + 7 * LARGEST_HOLE, pages + ROOM + 7 * LARGEST_HOLE))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert grown < ROOM, f"{grown >> 20} MiB more than at the beginning"
    print(json.dumps({"outcomes": outcomes, "slowest": slowest, "deaf": pulse.longest, "grown": grown}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
