"""The rooms of the runtime and the arrows between them, read from its imports. As a script: print them.

    .venv/bin/python tests/architecture/rooms.py

Not here: the arrows between the four packages (test_imports.py). An import counts wherever it stands: at the top of a
module, in a function, or for types alone.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
RUNTIME = ROOT / "runtime/partita"
PACKAGES = (RUNTIME, *(ROOT / part / f"partita_{part}" for part in ("backends", "convert", "apps")))
GROUND = frozenset(
    {
        *("arrays", "backend", "brief", "errors", "group", "printable", "quantization", "rings", "small_floats"),
        "units",
    }
)
"""Modules at the root that every room may import. `partita` itself holds the version."""

MAY_IMPORT: Mapping[str, frozenset[str]] = {
    "files": frozenset(),
    "text": frozenset({"files"}),
    "sources": frozenset({"files"}),
    "checkpoint": frozenset({"files"}),
    "model": frozenset({"checkpoint"}),
    "cache": frozenset({"files", "model"}),
    "adapters": frozenset({"files", "checkpoint", "model"}),
    "inference": frozenset({"cache", "model"}),
    "data": frozenset({"files", "text", "sources"}),
    "training": frozenset({"files", "data", "adapters", "cache", "model", "checkpoint"}),
    "language_model": frozenset({"files", "text", "sources", "checkpoint", "model", "cache", "adapters", "inference"}),
    "finetuning": frozenset(
        {"files", "text", "sources", "checkpoint", "model", "adapters", "data", "training", "language_model"}
    ),
    "draft_model": frozenset(
        {"files", "text", "sources", "checkpoint", "model", "cache", "adapters", "inference", "language_model"}
    ),
    "engine": frozenset({"files", "text", "cache", "inference", "language_model"}),
    "shortcuts": frozenset(
        {
            *("files", "text", "sources", "checkpoint", "model", "cache", "adapters", "inference"),
            *("language_model", "finetuning"),
        }
    ),
}
"""What a room, or a module at the root that stands above them, may import beside itself and the ground."""

COMPOSITION = {("", name) for name in ("cache", "inference", "language_model", "shortcuts")}
"""What `partita/__init__.py` reaches for when it is named."""


def room_of(module: tuple[str, ...]) -> str:
    """The room of a module given by its parts below `partita`; "" for the package itself."""
    return module[0] if module else ""


def modules(root: Path = RUNTIME) -> dict[tuple[str, ...], Path]:
    """Every module of a package, the runtime if not told otherwise, by its parts below the package's name."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[parts[:-1] if parts[-1] == "__init__" else parts] = path
    return found


def imported(module: tuple[str, ...], path: Path, known: Mapping[tuple[str, ...], Path]) -> Iterator[tuple[str, ...]]:
    """Modules of its own package that a file imports."""
    package = module if path.name == "__init__.py" else module[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = package[: len(package) - node.level + 1] + tuple((node.module or "").split(".") if node.module else ())
        for alias in node.names:
            target = (*base, alias.name)
            yield target if target in known else base


def arrows(root: Path = RUNTIME) -> dict[tuple[str, ...], set[tuple[str, ...]]]:
    """What each module imports, the package itself left out: it reaches for modules when they are named."""
    known = modules(root)
    return {module: set(imported(module, path, known)) - {module} for module, path in known.items() if module}


def between_rooms() -> dict[tuple[str, str], set[str]]:
    """(room, room that it imports) and the files that do so."""
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    composed = {(): set(imported((), RUNTIME / "__init__.py", modules()))}
    for module, targets in (arrows() | composed).items():
        for target in targets:
            pair = room_of(module), room_of(target)
            if pair[0] != pair[1] and pair[1] not in GROUND and pair[1]:
                found[pair].add(f"{'/'.join(module) or '__init__'} → {'/'.join(target)}")
    return dict(found)


def circles(graph: Mapping[tuple[str, ...], set[tuple[str, ...]]]) -> list[list[tuple[str, ...]]]:
    """Groups of modules that import each other in a circle (Tarjan's strongly connected components)."""
    index: dict[tuple[str, ...], int] = {}
    low: dict[tuple[str, ...], int] = {}
    stack: list[tuple[str, ...]] = []
    found: list[list[tuple[str, ...]]] = []

    def visit(node: tuple[str, ...]) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in graph.get(node, ()):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            at = stack.index(node)
            group, stack[at:] = stack[at:], []
            if len(group) > 1:
                found.append(sorted(group))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def functions(path: Path) -> Iterator[tuple[int, str]]:
    """(lines, name) of each function of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            yield node.end_lineno - node.lineno + 1, node.name


def main() -> None:
    files = modules()
    sizes: dict[str, list[int]] = defaultdict(list)
    for module, path in files.items():
        name = room_of(module) if len(module) > 1 or path.name == "__init__.py" else ""
        sizes[name or "partita"].append(len(path.read_text(encoding="utf-8").splitlines()))
    total = sum(map(sum, sizes.values()))
    for name, lines in sorted(sizes.items(), key=lambda item: -sum(item[1])):
        print(f"{name:<12} {len(lines):>3} files {sum(lines):>6} lines {sum(lines) / total:>6.1%}")
    for (above, below), names in sorted(between_rooms().items()):
        allowed = below in MAY_IMPORT.get(above, frozenset()) or (above, below) in COMPOSITION
        print(f"{above or 'partita'} → {below}{'' if allowed else '   not allowed: ' + ', '.join(sorted(names))}")
    for circle in (circle for root in PACKAGES for circle in circles(arrows(root))):
        print("circle:", ", ".join("/".join(module) for module in circle))
    largest = max(files.values(), key=lambda path: len(path.read_text(encoding="utf-8").splitlines()))
    longest = max((*found, path.name) for path in files.values() for found in functions(path))
    print(f"largest file: {largest.relative_to(RUNTIME)}")
    print(f"longest function: {longest[1]} of {longest[2]}, {longest[0]} lines")


if __name__ == "__main__":
    main()
