"""A decoder is a tree: frozen dataclasses and tuples, with arrays and numbers at the leaves. Walk it, rewrite it.

A place in it is a path, "blocks.0.attention.qkv.parts.1.weight". Knows no layer and no backend.
Invariant: nothing is changed in place; what is rewritten shares every other part with what it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeGuard


def walk(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every node with its path, the root ("") first, children in the order of their fields."""
    yield path, tree
    for key, child in _children(tree):
        yield from walk(child, f"{path}.{key}" if path else key)


def at(tree: Any, path: str) -> Any:
    """The node at a path that is there."""
    for key in path.split("."):
        tree = tree[int(key)] if _is_tuple(tree) else getattr(tree, key)
    return tree


def replace_at(tree: Any, changes: Mapping[str, Any]) -> Any:
    """The tree with other nodes, leaves or whole parts, at some paths. KeyError for a path that is not there."""
    if "" in changes:
        return changes[""]
    if not changes:
        return tree
    below: dict[str, dict[str, Any]] = {}
    for path, value in changes.items():
        key, _, rest = path.partition(".")
        below.setdefault(key, {})[rest] = value
    children = dict(_children(tree))
    if missing := below.keys() - children.keys():
        raise KeyError(f"{type(tree).__name__} has no {sorted(missing)[0]!r}")
    new = {key: replace_at(children[key], inner) for key, inner in below.items()}
    if isinstance(tree, tuple):
        return tuple([new.get(key, child) for key, child in children.items()])
    return replace(tree, **new)


def _is_inner(node: Any) -> bool:
    return _is_tuple(node) or (is_dataclass(node) and not isinstance(node, type))


def _is_tuple(node: object) -> TypeGuard[tuple[Any, ...]]:
    return isinstance(node, tuple)


def _children(node: Any) -> Iterator[tuple[str, Any]]:
    if _is_tuple(node):
        yield from ((str(i), child) for i, child in enumerate(node))
    elif _is_inner(node):
        yield from ((field.name, getattr(node, field.name)) for field in fields(node))
