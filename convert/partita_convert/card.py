"""The README.md of a converted folder: what it came from and how, so that a stranger who finds it can tell.

Invariant: no dates, no paths of this machine: the same conversion writes the same text.
"""

from __future__ import annotations

from collections.abc import Callable

from partita.checkpoint.base import Checkpoint
from partita.printable import visible

from .report import kinds
from .write_folder import WrittenFolder


def card(source: Checkpoint, asked: str) -> Callable[[WrittenFolder], str]:
    """The text as a function of what was written. asked: the options of the command, as they were typed."""

    def text(written: WrittenFolder) -> str:
        lines = [
            f"# {written.path.name}",
            "",
            f"Converted from `{source.path.name}` by partita: `{asked}`.",
            "",
            "| weights | tensors | from | to | error |",
            "|---|---:|---|---|---:|",
        ]
        for kind in kinds(written.tensors):
            error = "" if kind.error is None else "exact" if kind.error == 0 else f"{kind.error:.2%}"
            lines.append(f"| {kind.name} | {kind.count} | {kind.source} | {kind.target} | {error} |")
        return visible("\n".join([*lines, "", "error: root mean square of the change, relative to the weights.", ""]))

    return text
