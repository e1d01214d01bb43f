"""Adapters out, as PEFT or mlx-lm keep them, and what quantization leaves of a change.

Not here: reading and fusing (`partita.adapters.read`). Invariants: matrices are written as they were read, transposed
at most; what a format cannot say is refused by name; a folder is there whole or not at all.

How much of a change survives is measured against the base *written the same way without it*, so that quantization's
own error does not count: retained = <Q(W + D) - Q(W), D> / <D, D>. A base that was quantized already lies on the grid,
and a D of less than half a step then moves nothing: the figure is 0, though the error of the written weight is small.
A base between the grid's points moves in proportion on average, and the figure is about 1, with a noise of
sqrt(step / (n |D|)).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from partita.adapters.peft import PREFIX
from partita.adapters.read import EMBEDDINGS, Adapter, LowRank
from partita.adapters.write import PeftConfig, write_files
from partita.checkpoint.schemes.affine import BITS, GROUP_SIZES
from partita.errors import DataError, UnsupportedModel
from partita.files.atomic import whole_folder
from partita.quantization import AFFINE, Packed, dequantize

RETAINED = 0.9
"""The least that counts as kept. Losing a tenth is like an adapter scaled by 0.9, within what people vary by hand;
between 0.9 and 1 lies what the figure's own noise can take away, below lies what rounding does. Measured on random
weights (256 x 512, groups of 64) that lay on a grid of 4 bits, changes of 0.3, 0.1 and 0.03 of their spread: 0.99, 0.84
and 0.06 left at 4 bits, 1.00, 0.99 and 0.57 at 5, all of it at 6. Off the grid: from 0.95 to 1.02, whatever their size
down to 0.001."""

Value = np.ndarray | Packed
Quantize = Callable[..., Packed]
Policy = Literal["raise", "keep", "refuse"]


def write_peft(adapter: Adapter, folder: Path) -> None:
    """A folder that PEFT's `from_pretrained` takes. DataError: the folder exists or cannot be written.

    UnsupportedModel: adapted stacks of experts, which PEFT has no form for.
    """
    tensors: dict[str, np.ndarray] = {}
    for name, change in adapter.changes.items():
        module = PREFIX + name.removesuffix(".weight")
        if change.a.ndim != 2:
            raise UnsupportedModel(f"{adapter.path.name}: {name} adapts a stack of experts, which PEFT cannot")
        if name.split(".")[-2] in EMBEDDINGS:
            tensors |= {f"{module}.lora_embedding_A": change.b.T, f"{module}.lora_embedding_B": change.a.T}
        else:
            tensors |= {f"{module}.lora_A.weight": change.a, f"{module}.lora_B.weight": change.b}
        if change.magnitude is not None:
            tensors[f"{module}.lora_magnitude_vector"] = change.magnitude
    tensors |= {PREFIX + name: value for name, value in adapter.replaced.items()}
    with whole_folder(Path(folder), replace=False) as partial:
        write_files(partial, "peft", tensors, _peft_config(adapter).document())


def _peft_config(adapter: Adapter) -> PeftConfig:
    modules = {name.removesuffix(".weight"): change for name, change in adapter.changes.items()}
    ranks = Counter(change.rank for change in modules.values())
    rank = ranks.most_common(1)[0][0] if ranks else 1
    alphas = {module: _alpha(change) for module, change in modules.items()}
    alpha = Counter(alphas.values()).most_common(1)[0][0] if alphas else 1
    targets, layers = _peft_targets(list(modules))
    return PeftConfig(
        adapter.base_model,
        rank,
        alpha,
        adapter.dropout,
        rslora=False,
        dora=adapter.is_dora,
        targets=targets,
        layers=layers,
        saved=sorted({name.split(".")[-2] for name in adapter.replaced}),
        ranks={_pattern(m): change.rank for m, change in modules.items() if change.rank != rank},
        alphas={_pattern(m): value for m, value in alphas.items() if value != alpha},
    )


def _pattern(module: str) -> str:
    return "^" + module.replace(".", r"\.")


def _alpha(change: LowRank) -> float:
    """The alpha whose quotient by the rank is the scale, to the last bit where there is one."""
    near = change.scale * change.rank
    found = (round(near), near, np.nextafter(near, np.inf), np.nextafter(near, -np.inf))
    exact = next((value for value in found if value / change.rank == change.scale), near)
    return float(exact)


def _peft_targets(modules: list[str]) -> tuple[list[str], list[int] | None]:
    """Names that PEFT finds these modules by, and no others: last parts and layers where every layer has them all."""
    places = {(module.rpartition(".")[2], _layer(module)) for module in modules}
    layers = sorted({layer for _, layer in places if layer is not None})
    ends = sorted({end for end, _ in places})
    if layers and len(modules) == len(places) == len(layers) * len(ends):
        return ends, layers
    return sorted(modules), None


def _layer(module: str) -> int | None:
    return next((int(part) for part in module.split(".") if part.isdecimal()), None)


def write_mlx_lm(adapter: Adapter, folder: Path) -> None:
    """A folder that mlx-lm's `load(adapter_path=…)` takes. DataError: the folder exists or cannot be written.

    mlx-lm has one rank and one scale: smaller ranks are filled with zeros, other scales multiplied into B (in float32).
    UnsupportedModel: whole tensors in the adapter, which it cannot hold.
    """
    if adapter.replaced:
        raise UnsupportedModel(
            f"{adapter.path.name}: mlx-lm's adapters cannot hold {next(iter(adapter.replaced))} whole"
        )
    rank = adapter.rank
    scale = Counter(change.scale for change in adapter.changes.values()).most_common(1)[0][0]
    tensors: dict[str, np.ndarray] = {}
    for name, change in adapter.changes.items():
        module = name.removesuffix(".weight")
        a, b = _filled(change, rank, scale)
        if a.ndim == 2:
            a, b = (b, a) if module.rpartition(".")[2] in EMBEDDINGS else (a.T, b.T)
        tensors |= {f"{module}.lora_a": a, f"{module}.lora_b": b}
        if change.magnitude is not None:
            tensors[f"{module}.m"] = change.magnitude
    keys = sorted({_in_layer(name.removesuffix(".weight")) for name in adapter.changes})
    config = {
        "fine_tune_type": "dora" if adapter.is_dora else "lora",
        "model": adapter.base_model,
        "num_layers": -1,  # all: in a layer without matrices of its own, zeros change nothing
        "lora_parameters": {"rank": rank, "scale": scale, "dropout": adapter.dropout, "keys": keys},
    }
    with whole_folder(Path(folder), replace=False) as partial:
        write_files(partial, "mlx", tensors, config)


def _filled(change: LowRank, rank: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    a, b = change.a, change.b
    if change.scale != scale:
        b = b.astype(np.float32) * np.float32(change.scale / scale)
    if missing := rank - change.rank:
        lead = [(0, 0)] * (a.ndim - 2)
        a, b = np.pad(a, [*lead, (0, missing), (0, 0)]), np.pad(b, [*lead, (0, 0), (0, missing)])
    return a, b


def _in_layer(module: str) -> str:
    """mlx-lm's key: the name inside its layer, or the whole of it outside of layers."""
    parts = module.split(".")
    at = next((i for i, part in enumerate(parts) if part.isdecimal()), -1)
    return ".".join(parts[at + 1 :])


# ---------------------------------------------------------------- what quantization leaves


def retained_share(base: Value, delta: np.ndarray, written: Value) -> float:
    """How much of `delta` is in `written`: 1.0 all of it, 0.0 nothing. 1.0 for a delta of zeros.

    base: the weight as it is written without the delta (see the module's head), so of the same format as `written`.
    """
    moved = _dense(written).astype(np.float64) - _dense(base)
    wide = delta.astype(np.float64)
    length = float(np.vdot(wide, wide))
    return float(np.vdot(moved, wide)) / length if length else 1.0


def fuse_quantized(
    base: Value,
    delta: np.ndarray,
    bits: int,
    group_size: int,
    quantize: Quantize,
    *,
    mode: str = AFFINE,
    policy: Policy = "raise",
    minimum: float = RETAINED,
    name: str = "a weight",
    on_share: Callable[[int, float], object] = lambda bits, share: None,
) -> tuple[Value, float]:
    """base + delta in `bits` bits, and the share of delta that is in it.

    Where that share is below `minimum`, or as far above 1 (rounding then moves weights more than the change does):
    "raise" takes the next width that keeps enough, at last the dense float32 sum; "keep" takes it as it is; "refuse"
    raises DataError with the figure. quantize(x, bits, group_size, mode=mode) -> Packed. on_share(bits, share): of each
    width that was tried. mode: of small floats, whose next widths are integers.
    """
    dense = _dense(base)
    total = dense + delta
    share = 0.0
    ways = [(width, partial(quantize, bits=width, group_size=group_size)) for width in BITS if width >= bits]
    if mode != AFFINE:
        group = max(group_size, min(GROUP_SIZES))
        ways = [(width, partial(quantize, bits=width, group_size=group)) for width in BITS if width > bits]
        ways = [(bits, partial(quantize, bits=bits, group_size=group_size, mode=mode)), *ways]
    for width, rounded in ways:
        written = rounded(total)
        # a packed base too: rules that do not give a grid back unchanged move both alike
        share = retained_share(rounded(dense), delta, written)
        on_share(width, share)
        if abs(1 - share) <= 1 - minimum or policy == "keep":
            return written, share
        if policy == "refuse":
            raise DataError(
                f"{name}: {100 * share:.0f} % of the adapter's change would be left at {bits} bits: ask for more bits, "
                "or keep the adapter apart"
            )
    return total, 1.0


def _dense(value: Value) -> np.ndarray:
    return dequantize(value) if isinstance(value, Packed) else value.astype(np.float32, copy=False)
