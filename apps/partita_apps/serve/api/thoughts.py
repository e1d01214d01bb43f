"""Thoughts as an opaque text, for clients that give those back and keep no other: a signature, or "encrypted" content.

They are the client's own and no secret: nothing is encrypted. What a later turn gives back is rendered into the prompt
as it was thought, so that the prompt goes on where the last one ended.
"""

from __future__ import annotations

import base64
import binascii

_SEAL = "partita-thought-1:"
SIGNATURE = "partita"
"""Of a thought that is given out as text. No client checks it, and some drop thoughts without one."""


def sealed(thought: str) -> str:
    return _SEAL + base64.b64encode(thought.encode(errors="surrogatepass")).decode()


def unsealed(text: str) -> str | None:
    """None for what `sealed` has not made: another server's, or damaged."""
    if not text.startswith(_SEAL):
        return None
    try:
        return base64.b64decode(text.removeprefix(_SEAL), validate=True).decode(errors="surrogatepass")
    except (binascii.Error, ValueError):
        return None
