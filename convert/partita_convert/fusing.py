"""An adapter's change on its way into the weights that are written, and how much of it arrives.

Not here: what an adapter is (`partita.adapters.read`), the rule of what counts as kept (`adapters.py`). Invariant:
every weight that the adapter changes has its share noted, whatever form it is written in, and every one that gets more
bits for it what it would have had.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np

from partita.adapters.read import Adapter, fused, resolved
from partita.checkpoint.base import Checkpoint
from partita.checkpoint.names import Index
from partita.errors import DataError
from partita.quantization import Packed, dequantize

from .adapters import RETAINED, Policy, fuse_quantized, retained_share
from .gguf.encode import WIDTHS, as_written, exact_type
from .gguf.file import TYPES, size
from .gguf.mixes import MIXES
from .gguf.write import dense_type, kinds_of_mix
from .recipes import Format
from .report import Raised
from .write_folder import Value, WrittenTensor, numpy_dtype

_WIDER = ("Q2_K", "Q3_K", "Q4_K", "Q4_0", "Q4_1", "Q5_K", "Q5_0", "Q5_1", "Q6_K", "Q8_0", "F16", "F32")


class Fusion:
    """base: the checkpoint without the adapter, changed: with it; one and the same without an adapter.

    names: of the weights that the adapter changes. retained, raised: filled as weights are written.
    """

    def __init__(self, base: Checkpoint, adapter: Adapter | None, policy: Policy):
        self.base, self.changed, self.names = base, base, frozenset[str]()
        if adapter is not None:
            self.changed, present = fused(base, adapter), Index(base.names())
            self.names = frozenset(resolved(name, present, adapter) for name in adapter.changes)
        self.policy: Policy = policy
        self.retained: dict[str, float] = {}
        self.raised: dict[str, Raised] = {}

    def changes(self, name: str) -> bool:
        return name in self.names

    def described(self, written: Iterable[WrittenTensor]) -> tuple[WrittenTensor, ...]:
        """As the source keeps them: an adapter's sum is dense, whatever it was made of."""
        return tuple(
            replace(tensor, source=self.base.stored_as(tensor.name)) if self.changes(tensor.name) else tensor
            for tensor in written
        )

    def packed_as(self, name: str) -> Format | None:
        """The format that the base keeps this weight in; None for a dense one."""
        value = self.base.read(name)
        return Format(value.bits, value.group_size, value.mode) if isinstance(value, Packed) else None

    def delta(self, name: str) -> tuple[Value, np.ndarray]:
        """The weight as the base has it, and what the adapter adds to it, float32."""
        base = self.base.read(name)
        return base, _float32(self.changed.read(name)) - _float32(base)

    def quantized(self, name: str, wanted: Format, quantize: Callable[..., Packed]) -> Value:
        """The changed weight in `wanted`, or wider where that would lose the change."""
        base, delta = self.delta(name)
        shares: dict[int, float] = {}
        value, self.retained[name] = fuse_quantized(
            *(base, delta, wanted.bits, wanted.group_size, quantize),
            mode=wanted.mode,
            policy=self.policy,
            name=name,
            on_share=lambda bits, share: shares.setdefault(bits, share),
        )
        if not isinstance(value, Packed) or (value.bits, value.mode) != (wanted.bits, wanted.mode):
            nbytes = math.ceil(wanted.bits_per_weight * delta.size / 8)
            self.raised[name] = Raised(str(wanted), shares[wanted.bits], nbytes)
        return value

    def note(self, name: str, written: Value) -> None:
        """A weight that was written dense."""
        base, delta = self.delta(name)
        rounded = base if isinstance(written, Packed) else _float32(base).astype(written.dtype).astype(np.float32)
        self.retained[name] = retained_share(rounded, delta, written)

    def note_dense(self, written: Iterable[WrittenTensor]) -> None:
        """Every weight of a folder of dense tensors."""
        for tensor in written:
            if self.changes(tensor.name):
                self.note(tensor.name, _float32(self.changed.read(tensor.name)).astype(numpy_dtype(tensor.target)))


def gguf_kinds(fusion: Fusion, kind: str, kinds: Mapping[str, str], *, as_stored: bool) -> dict[str, str]:
    """The type of every weight that the adapter changes: as wanted, or wider where that would lose the change.

    as_stored: no type was asked for, so that a packed weight's own is wanted, if it has one that can be written.
    """
    untied = any(name.endswith("lm_head.weight") for name in fusion.base.names())
    head = "lm_head.weight" if untied else "embed_tokens.weight"
    found: dict[str, str] = {}
    mixed = {**kinds_of_mix(fusion.base, kind), **kinds} if kind in MIXES else kinds
    for name in sorted(fusion.names):
        base, delta = fusion.delta(name)
        own = exact_type(base) if as_stored and isinstance(base, Packed) else None
        asked = own if own in _WIDER else mixed.get(name, kind)
        wanted = dense_type(asked, delta.shape[-1], is_head=name.endswith(head) and kind not in MIXES)
        wider = _WIDER[_WIDER.index(wanted) :] if wanted in WIDTHS else (wanted,)
        wider = tuple(candidate for candidate in wider if delta.shape[-1] % TYPES[candidate][1] == 0)
        for candidate in wider:
            plain, whole = _float32(base), _float32(base) + delta
            share = retained_share(as_written(name, plain, candidate), delta, as_written(name, whole, candidate))
            if candidate != wanted:
                first = fusion.raised[name].share if name in fusion.raised else fusion.retained[name]
                fusion.raised[name] = Raised(wanted, first, size(wanted, delta.shape))
            found[name], fusion.retained[name] = candidate, share
            if abs(1 - share) <= 1 - RETAINED or fusion.policy == "keep":
                break
            if fusion.policy == "refuse":
                raise DataError(
                    f"{name}: {100 * share:.0f} % of the adapter's change would be left in {candidate}: ask for a "
                    "wider type, or keep the adapter apart"
                )
    return found


def _float32(value: Value) -> np.ndarray:
    return dequantize(value) if isinstance(value, Packed) else value.astype(np.float32, copy=False)
