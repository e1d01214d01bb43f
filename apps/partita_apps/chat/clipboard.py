"""A text on its way to the clipboard: through the desktop's program for it, or through the terminal (OSC 52).

Over ssh the desktop is elsewhere, and the terminal is what leads there. Whether a terminal takes the sequence cannot be
asked, so the way that was taken is shown; NO_COLOR is about what is shown, and this is not.
Invariant: no program is waited for longer than SECONDS.
"""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys

from partita.errors import DataError

from ..terminal import is_dumb

SECONDS = 5.0
PROGRAMS = (
    ("WAYLAND_DISPLAY", ("wl-copy", "--type", "text/plain")),
    ("DISPLAY", ("xclip", "-selection", "clipboard")),
    ("DISPLAY", ("xsel", "--clipboard", "--input")),
    ("", ("pbcopy",)),
)
"""The variable that says that the desktop is there ("" for none), and the command that reads the text."""
MOST = 74_994  # bytes: in base64 what xterm reads of one sequence, 100,000 with what stands around it


def copy(text: str) -> str:
    """Put a text into the clipboard, and say which way. Raises DataError where there is none."""
    data = text.encode("utf-8", "replace")
    if not (os.environ.get("SSH_CONNECTION") or os.environ.get("SSH_TTY")):
        for variable, command in PROGRAMS:
            if (not variable or os.environ.get(variable)) and _given(command, data):
                return f"with {command[0]}"
    if is_dumb():
        raise DataError(
            "no clipboard is found: install wl-copy, xclip or xsel, or write the conversation with /save FILE"
        )
    sys.stdout.write(f"\x1b]52;c;{base64.b64encode(data).decode()}\x07")
    sys.stdout.flush()
    long = f"; many take no more than {MOST} bytes" if len(data) > MOST else ""
    return f"through the terminal (OSC 52), if it allows that{long}"


def _given(command: tuple[str, ...], data: bytes) -> bool:
    """Whether a program is there and took the text. It may live on with its output open, so that is not waited for."""
    if shutil.which(command[0]) is None:
        return False
    nowhere = subprocess.DEVNULL
    try:
        return subprocess.run(command, input=data, stdout=nowhere, stderr=nowhere, timeout=SECONDS).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
