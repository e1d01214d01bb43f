"""What every process that the server starts does around its work: its end of the channel, its exit status.

Not here: what it computes (`child`, `app.tuning.child`). Invariants: nothing of a library keeps the process alive once
its work is done; what went wrong stays in the log.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from .channel import Closed, Line

_log = logging.getLogger(__name__)


def serve_parent(name: str, down: Any, work: Callable[[Line], None], arguments: list[str] | None) -> NoReturn:
    """Do the work over the line that the arguments name (those of the command if left out), then end: with 0, with 2
    where the line was closed or said nonsense, with 1 for all else. name: in the log. down: frames of the server."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format=f"{name} process {os.getpid()}: %(message)s")
    try:
        line = Line.of(sys.argv[1:] if arguments is None else arguments, down)
        work(line)
        status = 0
    except Closed as error:
        print(error, file=sys.stderr)
        status = 2
    except BaseException:
        _log.exception("it failed")
        status = 1
    sys.stderr.flush()
    os._exit(status)  # a library's threads keep nothing alive
