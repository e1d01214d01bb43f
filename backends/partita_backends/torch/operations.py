"""Operations of our own that torch knows by name, `partita::…`: what follows torch's operations (fake tensors, a
recording) sees one operation with its shapes and with what it writes, and not the kernels behind it.

They are declared through `torch.library.Library`: `torch.library.custom_op` gives the same, but imports torch's
compiler at the first call, which takes a second, and costs a call 12 µs in place of 5.
Not here: derivatives. These operations are for inference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("partita", "FRAGMENT")


def operation(schema: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """A function as the operation `partita::` + schema, on every device that its arguments may be on.

    schema: in torch's notation; what is written in place stands there as `Tensor(a!)`. fake: of the same arguments, the
    shapes and dtypes of what it gives, without computing.
    """

    def define(function: Callable[..., Any]) -> Any:
        name = schema.split("(", 1)[0]
        _LIBRARY.define(schema)
        _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        torch.library.register_fake(f"partita::{name}", fake, lib=_LIBRARY)
        return getattr(torch.ops.partita, name).default

    return define
