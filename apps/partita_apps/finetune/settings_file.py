"""A YAML file of settings: what a person writes, and nothing else that YAML can do.

Not here: which settings there are. Invariants: reading takes time and memory of the order of the file, which is small;
no value is repeated by reference, no class is named, no key is given twice, no date is made of a number; whatever is
wrong is one DataError that names the file and the place.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from partita.errors import DataError

LARGEST = 1 << 16  # bytes


def read(path: Path) -> dict[Any, Any]:
    """The table in the file, {} for an empty one."""
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise DataError(f"{path} is too long for a file of settings: it has more than {LARGEST} bytes")
        document = yaml.load(data.decode(), Loader=Loader)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start})") from None
    except _Refused as error:
        raise DataError(f"{path} line {error.args[1] + 1}: {error.args[0]}") from None
    except yaml.YAMLError as error:
        raise DataError(f"{path}: cannot read YAML: {_reason(error)}") from None
    except RecursionError:
        raise DataError(f"{path}: cannot read YAML: nested too deeply") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise DataError(f"{path} must hold lines of `name: value`, as `steps: 200`")
    return document


class Loader(yaml.SafeLoader):
    """Plain scalars, lists and tables."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - yaml's own interface
        letter: [rule for rule in rules if rule[0].rpartition(":")[2] not in ("timestamp", "merge", "value")]
        for letter, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _Refused("a reference (*) to another value: write the value itself", event.start_mark.line)
        if getattr(event, "tag", None) not in (None, "!"):
            raise _Refused("a tag (!): write plain values", event.start_mark.line)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _Refused("a key that is not a name", key.start_mark.line)
            if key.value in seen:
                raise _Refused(f"{key.value} given twice", key.start_mark.line)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError):  # "0x_", or thousands of digits
            raise _Refused("a number that cannot be read", node.start_mark.line) from None


class _Refused(Exception):
    """What, and in which line, from 0."""


def _reason(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    where = "" if mark is None else f" in line {mark.line + 1}"
    problem = getattr(error, "problem", None) or str(error)
    return f"{' '.join(str(problem).split())}{where}"
