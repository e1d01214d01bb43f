"""The arrows between the four packages, read from their imports; and what starting must not import."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import partita
import partita_backends

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "partita": ROOT / "runtime/partita",
    "partita_backends": ROOT / "backends/partita_backends",
    "partita_convert": ROOT / "convert/partita_convert",
    "partita_apps": ROOT / "apps/partita_apps",
}
MAY_IMPORT = {
    "partita": set(),
    "partita_backends": {"partita"},
    "partita_convert": {"partita"},
    "partita_apps": {"partita", "partita_backends", "partita_convert"},
}
COMPOSITION = {PACKAGES["partita"] / name for name in ("language_model.py", "shortcuts.py")}
"""Where the runtime reaches for a backend and for the converter, when a function is called."""
PICKLES = PACKAGES["partita_convert"] / "pickle_child.py"  # a program of its own, never imported
BACKENDS_NEED = {
    "arrays",
    "rings",
    "backend",
    "brief",
    "errors",
    "group",
    "quantization",
    "small_floats",
    "units",
}  # ground, without `printable`


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(absolute module, at module level?) for every import of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = set(tree.body)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module, node in top
            yield from ((f"{node.module}.{alias.name}", node in top) for alias in node.names)


def files() -> list[tuple[str, Path]]:
    return [(package, path) for package, folder in PACKAGES.items() for path in sorted(folder.rglob("*.py"))]


@pytest.mark.parametrize(("package", "path"), files(), ids=lambda value: getattr(value, "name", value))
def test_arrows(package: str, path: Path) -> None:
    for module, at_top in imports(path):
        root = module.split(".")[0]
        if root in PACKAGES and root != package:
            lazily = path in COMPOSITION and not at_top
            assert root in MAY_IMPORT[package] or lazily, f"{path.name} imports {module}"
        if package in ("partita", "partita_convert") and path != PICKLES:
            assert root not in ("mlx", "torch"), f"{path.name} imports {module}"
        if package == "partita_backends" and root == "partita" and module != "partita":
            assert module.split(".")[1] in BACKENDS_NEED, f"{path.name} imports {module}"


def test_backends_do_not_know_each_other() -> None:
    """A module belongs to the backend whose name it, or its folder, begins with; others are used by all."""
    folder, names, owners = PACKAGES["partita_backends"], set(partita_backends.names()), set()
    for path in sorted(set(folder.rglob("*.py")) - {folder / "__init__.py"}):
        own = path.relative_to(folder).with_suffix("").parts[0].split("_")[0]
        owners |= {own} & names
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                parts = [(node.module or "").split(".")[0], *(alias.name for alias in node.names)]
                assert not {part.split("_")[0] for part in parts} & (names - {own}), path
        for module, _ in imports(path):
            package, *inner = module.split(".")
            others = names - {own}
            assert package not in others - {"numpy"}, f"{path.name} imports {module}"  # numpy's library is for all
            assert package != "partita_backends" or not {part.split("_")[0] for part in inner} & others, path
    assert owners == names


def loaded_by(code: str) -> set[str]:
    program = f"{code}\nimport sys; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_partita_is_light() -> None:
    heavy = {"mlx", "torch", "tokenizers", "sentencepiece", "jinja2", "huggingface_hub", "transformers", "rich"}
    assert not heavy & loaded_by("import partita, partita_backends")


def test_help_is_light() -> None:
    code = "import partita_apps.cli as cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass"
    program = f"{code}\nimport sys; print(*sorted({{name.split('.')[0] for name in sys.modules}}), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "chat" in done.stdout
    heavy = {"mlx", "torch", "numpy", "tokenizers", "jinja2", "huggingface_hub", "msgspec", "rich", "prompt_toolkit"}
    assert not heavy & set(done.stderr.split())


def test_the_public_surface() -> None:
    assert partita.__all__ == sorted(partita.__all__)
    classes = {"Cache", "LanguageModel", "PartitaError", "Piece", "Sampling", "Session"}
    functions = {"chat", "convert", "finetune", "generate", "load", "logits"}
    assert set(partita.__all__) == {"__version__", *classes, *functions}
    assert set(partita.__all__) <= set(dir(partita))
    assert all(getattr(partita, name) is not None for name in partita.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        partita.nothing  # noqa: B018


@pytest.mark.parametrize(("package", "path"), files(), ids=lambda value: getattr(value, "name", value))
def test_every_module_says_what_it_is_for(package: str, path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if text.strip():
        assert ast.get_docstring(ast.parse(text)), path
