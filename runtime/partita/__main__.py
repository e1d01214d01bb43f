"""`python -m partita` is the command `partita`, found by its name: the runtime knows no app."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points

if __name__ == "__main__":
    commands = entry_points(group="console_scripts", name="partita")
    if not commands:
        sys.exit("partita: the command is not installed: pip install partita")
    next(iter(commands)).load()()
