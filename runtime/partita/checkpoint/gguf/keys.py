"""A GGUF file's numbers under one architecture's prefix, read with their types checked.

Not here: which keys there are (`architectures`) and what they become (`names`). Invariant: a value that is
not of the type asked for is a CheckpointError that names its key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import CheckpointError, UnsupportedModel
from ...files.bounded import is_list


@dataclass(frozen=True)
class Keys:
    """metadata: all of the file's. prefix: the architecture. tensors: GGUF name to shape in numpy's order."""

    metadata: Mapping[str, Any]
    prefix: str
    tensors: Mapping[str, tuple[int, ...]]

    def _uniform(self, name: str) -> Any:
        value = self.metadata.get(name)
        if not is_list(value) or not value:
            return value
        if any(item != value[0] for item in value):
            raise UnsupportedModel(f"{name} differs between layers, which is not implemented for {self.prefix}")
        return value[0]

    def get(self, key: str, kind: type, default: Any = ...) -> Any:
        """A number or string; an array of equal items (one a layer) counts as its item. default ...: required."""
        name = f"{self.prefix}.{key}"
        value = self._uniform(name)
        if value is None:
            if default is ...:
                raise CheckpointError(f"the GGUF metadata lacks {name}")
            return default
        return self._of(kind, value, name)

    def each(self, key: str, kind: type, default: Any = ...) -> Any:
        """A number for each layer, a list; what is said once holds for all of them. Else as `get`."""
        name, layers = f"{self.prefix}.{key}", self.get("block_count", int)
        said = self.metadata.get(name)
        if not is_list(said):
            value = self.get(key, kind, default)
            return value if value is None else [value] * min(layers, len(self.tensors))
        if len(said) != layers:
            raise CheckpointError(f"{name} has {len(said)} items for {layers} layers")
        return [self._of(kind, value, name) for value in said]

    def _of(self, kind: type, value: Any, name: str) -> Any:
        if kind is str and isinstance(value, str):
            return value
        if kind is int and type(value) is int and 0 <= value < 1 << 31:
            return value
        if kind is float and type(value) in (int, float) and abs(value) < 1e38:  # false for NaN
            return shortest(value)
        raise CheckpointError(f"{name} is {value!r}, which is not a usable {kind.__name__}")


def shortest(value: float) -> float:
    """The shortest decimal of a float32: 1e-05, not 9.999999747378752e-06."""
    import numpy as np

    return float(str(np.float32(value)))
