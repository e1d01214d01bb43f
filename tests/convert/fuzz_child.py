"""A program: damage small models COUNT times and open each. Run as `python fuzz_child.py FOLDER SEED COUNT`.

Every file must open well or end in a PartitaError. Anything else, a file opened for writing, a program started, a
network connection, memory beyond the limit, a crash or 10 s without an end makes the program fail; FOLDER/now.json
then says which file it was, by seed and number, and the damaged model is still in FOLDER/case.
"""

from __future__ import annotations

import collections
import copy
import faulthandler
import json
import os
import random
import resource
import shutil
import sys
from pathlib import Path
from typing import Any

import fuzz_corpus
import fuzz_schemes
from fuzz_exercise import exercise

ADDRESS_ROOM = 1 << 30  # bytes that opening a damaged file may map; the files have some 100 kB
RESIDENT_ROOM = 96 << 20
SECONDS = 10
NUMBERS = [0, 1, 2, 7, 31, 255, 256, 65535, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**62, 2**63, 2**64 - 1]
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 3, 64, 10**9, 2**63, 2**70, 1e308, -1e308, 1e-320, float("nan"), float("inf"), 0.5),
    *("", "x", "0", "\0", "../x", "é\ud800", "a" * 5000, "llama", "yarn", "linear", "{{ 1 }}", "(" * 90, "[^\\s]+"),
    *(
        [],
        {},
        [[]],
        [None],
        [0] * 40,
        ["a", "a"],
        [-1, 2**40],
        {"a": 1},
        {"type": "Sequence"},
        {"0": {}},
        [[1, 2], [3]],
    ),
]
FORBIDDEN = (
    *("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"),
    *("os.exec", "os.fork", "os.posix_spawn", "os.system", "subprocess.Popen", "socket.connect", "pickle.find_class"),
)


class Guard:
    """An audit hook that refuses to write, to start programs and to connect while a file is being opened."""

    def __init__(self) -> None:
        self.watching, self.broken = False, ""
        sys.addaudithook(self.see)

    def see(self, event: str, arguments: tuple) -> None:
        if not self.watching:
            return
        writes = event == "open" and (
            (isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"))
            or arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        )
        if writes or event in FORBIDDEN:
            self.broken = f"{event} {arguments!r}"


# ---------------------------------------------------------------- damage


def damaged(raw: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """One to four changes of bytes: most of them near the beginning, where headers are."""
    data = bytearray(raw)
    for _ in range(rng.randint(1, 4)):
        size = len(data)
        reach = min(size, 4096) if rng.random() < 0.8 else size
        at = rng.randrange(reach) if reach else 0
        match rng.randrange(8):
            case 0:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 1 if data:
                at = min(at, size - 1)
                data[at] ^= 1 << rng.randrange(8)
            case 2:
                width = rng.choice((4, 8))
                data[at : at + width] = (rng.choice(NUMBERS) % (1 << 8 * width)).to_bytes(width, "little")
            case 3:
                del data[rng.randrange(size + 1) :]
            case 4:
                del data[at : at + rng.choice((1, 2, 8, 100))]
            case 5:
                data[at:at] = rng.randbytes(rng.choice((1, 4, 8, 32)))
            case 6:
                other = rng.choice(others)
                start, length = rng.randrange(len(other) or 1), rng.choice((8, 40, 400))
                data[at : at + length] = other[start : start + length]
            case _:
                word = rng.choice([b"9", b"-", b'"', b"]", b"{", b"1e9", b"null", b"\\u0000", b"\xff", b"99999999999"])
                data[at : at + len(word)] = word
    return bytes(data)


def changed(value: Any, rng: random.Random) -> Any:
    """A JSON value with one to three of its nodes replaced, removed or doubled."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        node = value
        while True:
            keys = list(node) if isinstance(node, dict) else range(len(node))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(node[key], dict | list) and node[key] and rng.random() < 0.75:
                node = node[key]
                continue
            match rng.randrange(6):
                case 0:
                    del node[key]
                case 1 if isinstance(node, dict):
                    node[rng.choice(["", "x", "\0", "..", "model_file", "auto_map", "9" * 30])] = node.pop(key)
                case 2 if isinstance(node[key], int):
                    node[key] = rng.choice([node[key] + 1, node[key] * 2, -node[key], node[key] << 40])
                case _:
                    node[key] = copy.deepcopy(rng.choice(VALUES))
            break
    return value


def as_json(value: Any, rng: random.Random) -> bytes:
    text = json.dumps(value).encode()
    return b"[" * 100_000 if rng.random() < 0.005 else text  # nested deeper than a parser's stack


def rebuilt_gguf(rng: random.Random, forms: dict) -> bytes:
    """A GGUF whose keys or tensors were changed as values, so that the damage lies behind the header's own checks."""
    keys, tensors, data = copy.deepcopy(rng.choice(list(forms.values())))
    for _ in range(rng.randint(1, 3)):
        match rng.randrange(7):
            case 0:
                del keys[rng.randrange(len(keys))]
            case 1:
                at = rng.randrange(len(keys))
                kind = rng.choice([4, 5, 6, 7, 8, 10, 11, 12])
                keys[at] = (keys[at][0], kind, value_of(kind, rng))
            case 2 | 3:
                at = rng.randrange(len(keys))
                item = rng.choice([0, 4, 5, 6, 7, 8, 10, 11, 12])
                items = [value_of(item, rng) for _ in range(rng.choice((0, 1, 2, len(tensors), 32)))]
                keys[at] = (keys[at][0], 9, (item, items))
            case 4:
                at = rng.randrange(len(keys))
                if keys[at][1] == 9 and keys[at][2][1]:
                    item, items = keys[at][2]
                    items[rng.randrange(len(items))] = value_of(item, rng)
            case 5:
                at = rng.randrange(len(tensors))
                name, sizes, kind, offset = tensors[at]
                sizes = tuple(rng.choice([size, size, 0, 1, rng.choice(NUMBERS)]) for size in sizes)
                sizes = (sizes + (rng.choice(NUMBERS),) * rng.randrange(4)) if rng.random() < 0.3 else sizes
                tensors[at] = (name, sizes, rng.choice([kind, kind, rng.randrange(45)]), rng.choice([offset, 0, 2**63]))
            case _:
                at, other = rng.randrange(len(tensors)), rng.choice(tensors)
                name = rng.choice([other[0], "", "a\0b", "blk.0", "blk.99999999999999.attn_q.weight", "é" * 40])
                tensors[at] = (name, *rng.choice([tensors[at], other])[1:])
    return fuzz_corpus.gguf_bytes(keys, tensors, data, rng.choice([3, 3, 3, 2]))


def value_of(kind: int, rng: random.Random) -> Any:
    if kind == fuzz_corpus.STRING:
        text = rng.choice([value for value in VALUES if isinstance(value, str)] + ["<|im_end|>", "a b", "a", "<0x41>"])
        return rng.choice([text, text.encode("utf-8", "surrogatepass"), b"\xff\xfe"])
    if kind in (fuzz_corpus.F32, fuzz_corpus.F64):
        return rng.choice([0.0, -1.0, 1e-30, 1e30, float("nan"), float("inf"), 0.5])
    if kind == fuzz_corpus.BOOL:
        return rng.random() < 0.5
    bits, signed = {0: (8, 0), 4: (32, 0), 5: (32, 1), 10: (64, 0), 11: (64, 1)}[kind]
    number = rng.choice(NUMBERS) % (1 << bits)
    return number - (1 << bits) if signed and number >> (bits - 1) else number


# ---------------------------------------------------------------- one case


class Cases:
    """Damaged copies of the valid models, in a folder of their own that is used again."""

    def __init__(self, root: Path, seed: int):
        self.root, self.seed = root, seed
        self.valid = fuzz_corpus.write_all(root, fuzz_schemes.FORMS)
        self.forms = fuzz_corpus.gguf_forms()
        files = [path for form in self.valid for path in ([form] if form.is_file() else sorted(form.iterdir()))]
        self.contents = {path: path.read_bytes() for path in files}

    def make(self, number: int) -> Path:
        rng = random.Random(f"{self.seed} {number}")
        case = self.root / "case"
        shutil.rmtree(case, ignore_errors=True)
        case.mkdir()
        valid = rng.choice(self.valid)
        if valid.is_file():
            target = case / "model.gguf"
            others = list(self.contents.values())
            whole = damaged(self.contents[valid], rng, others) if rng.random() < 0.5 else rebuilt_gguf(rng, self.forms)
            target.write_bytes(whole)
            return target
        names = sorted(path.name for path in valid.iterdir())
        victim = rng.choice([name for name in names if "token" in name] if rng.random() < 0.3 else names)
        for name in names:
            (case / name).write_bytes(self.contents[valid / name])
        if rng.random() < 0.03:
            (case / victim).unlink()
        elif rng.random() < 0.03:
            (case / victim).unlink()
            (case / victim).mkdir()
        else:
            (case / victim).write_bytes(self.victim(victim, self.contents[valid / victim], rng))
        return case

    def victim(self, name: str, raw: bytes, rng: random.Random) -> bytes:
        others = list(self.contents.values())
        if name.endswith(".json") and rng.random() < 0.7:
            return as_json(changed(json.loads(raw), rng), rng)
        if name.endswith(".safetensors") and rng.random() < 0.5:
            length = int.from_bytes(raw[:8], "little")
            header = changed(json.loads(raw[8 : 8 + length]), rng)
            return fuzz_corpus.safetensors_bytes(as_json(header, rng), raw[8 + length :])
        return damaged(raw, rng, others)


def main(root: Path, seed: int, count: int, only: int | None = None) -> None:
    cases, guard, outcomes = Cases(root, seed), Guard(), collections.Counter()
    for valid in cases.valid:  # also imports and warms up whatever is used
        assert exercise(valid) == ("decoded" if valid.stem in fuzz_corpus.WHOLE else "opened"), valid
    pages = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (pages + ADDRESS_ROOM, pages + ADDRESS_ROOM))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count) if only is None else [only]:
        path = cases.make(number)
        names = sorted((root / "case").rglob("*"))
        (root / "now.json").write_text(json.dumps({"seed": seed, "number": number}))
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        guard.watching = True
        outcomes[exercise(path)] += 1
        guard.watching = False
        faulthandler.cancel_dump_traceback_later()
        assert not guard.broken, guard.broken
        assert sorted((root / "case").rglob("*")) == names, "files appeared or went"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert grown < RESIDENT_ROOM, f"{grown >> 20} MiB more than valid files take"
    print(json.dumps({"count": count, "outcomes": outcomes, "grown": grown}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
