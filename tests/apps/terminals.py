"""Programs on a terminal of their own: the fixture `terminal` runs them (conftest.py)."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pexpect

Terminal = Callable[..., pexpect.spawn]
PARTITA = str(Path(sys.executable).with_name("partita"))


def terminal_environment(folder: Path, *dropped: str, **more: str) -> dict[str, str]:
    """Of a usual terminal, with a folder for the home and for what programs keep. dropped: variables of ours that are
    left out besides its size. more: further ones."""
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", *dropped)}
    own = {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}  # nobody here answers where the cursor is
    return {**kept, **own, "XDG_STATE_HOME": str(folder / "state"), "HOME": str(folder), **more}
