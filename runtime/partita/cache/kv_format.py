"""The names of key-value formats: what the setting kv takes. Knows no arrays."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import DataError

BITS = (4, 8, 16, 32)
GROUPS = (32, 64)
_NAME = re.compile(r"k(\d{1,4})v(\d{1,4})(?::(\d{1,4}))?(h)?(?::(\d{1,4}))?")


@dataclass(frozen=True)
class KVFormat:
    """Bits of keys and of values (32 and 16: dense; 8 and 4: packed), values a group, and the Hadamard rotation."""

    key_bits: int
    value_bits: int
    group_size: int = 32
    hadamard: bool = False

    @classmethod
    def parse(cls, name: str, *, dense_bits: int = 16) -> KVFormat:
        """`auto`, `16`, `32`, or `k8v4` with `:64` for the group size and `h` for the rotation.

        dense_bits: what `auto` means where nothing presses: the width that the backend computes in.
        Raises DataError for anything else.
        """
        if name == "auto":
            return cls(dense_bits, dense_bits)
        if name in ("16", "32"):
            return cls(int(name), int(name))
        match = _NAME.fullmatch(name)
        if match is None:
            raise _unknown(name, "expected auto, 16, or keys and values such as k8v4, k4v4:64, k4v4h")
        key, value, before, hadamard, after = match.groups()
        if before and after:
            raise _unknown(name, "group size given twice")
        group = int(before or after or 32)
        for bits in (int(key), int(value)):
            if bits not in BITS:
                raise _unknown(name, f"bits must be one of {', '.join(map(str, BITS))}, got {bits}")
        if group not in GROUPS:
            raise _unknown(name, f"the group size must be 32 or 64, got {group}")
        return cls(int(key), int(value), group, bool(hadamard))

    @property
    def joint(self) -> bool:
        """Whether sinks, ring, keys and values are slots of one array: all dense, and alike."""
        return self.key_bits == self.value_bits >= 16

    @property
    def sink_bits(self) -> int:
        """Sinks are never quantized: they are stored as the denser side is, in full where both are packed."""
        return max(self.key_bits, self.value_bits) if min(self.key_bits, self.value_bits) >= 16 else 32

    def __str__(self) -> str:
        if self.key_bits == self.value_bits and self.key_bits >= 16 and not self.hadamard:
            return str(self.key_bits)
        packed = min(self.key_bits, self.value_bits) < 16
        group = ":64" if packed and self.group_size == 64 else ""
        return f"k{self.key_bits}v{self.value_bits}{group}{'h' if self.hadamard else ''}"


def _unknown(name: str, why: str) -> DataError:
    """The error for a name that is no format's."""
    return DataError(f"unknown `kv` {name!r}: {why}", field="kv")
