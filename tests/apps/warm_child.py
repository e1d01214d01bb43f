"""Runs `partita` again and again, each time in a fork of this process, which has imported what commands import: a
command is in a process of its own, as it is for people, without seconds of imports. Only where fork is safe: on Linux.

A task is a line of JSON on standard input, `{"arguments": […], "environment": {…}, "folder": path, "streams": [in, out,
err]}`; its exit status is the answer, a line on standard output. One at a time; the process ends with its input.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import sys
from typing import Any, TextIO

status = 1  # of a fork that an exception ends


def leave() -> None:
    """Registered first, so called last. To take the modules apart, as an interpreter does at its end, would copy all
    the memory that a fork shares with this process."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def load() -> None:
    """What commands import, but for MLX, which starts threads."""
    import matplotlib.figure  # noqa: F401
    import torch  # noqa: F401

    import partita_apps.chat.once
    import partita_apps.cli
    import partita_apps.finetune.run  # noqa: F401
    import partita_backends.torch.cpu  # noqa: F401


def next_task(tasks: TextIO) -> dict[str, Any] | None:
    """A task, in a fork of this process; None at the end."""
    for line in tasks:
        child = os.fork()
        if not child:
            tasks.close()
            return json.loads(line)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    return None


def perform(arguments: list[str], environment: dict[str, str], folder: str, streams: list[str]) -> int:
    """The exit status."""
    for number, (path, mode) in enumerate(zip(streams, (os.O_RDONLY, os.O_WRONLY, os.O_WRONLY), strict=True)):
        opened = os.open(path, mode)
        os.dup2(opened, number)
        os.close(opened)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[1:] = arguments
    sys.path[0] = folder  # as of `python -m`
    del sys.modules["partita_apps.cli"]
    try:
        runpy.run_module("partita_apps.cli", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


if __name__ == "__main__":
    atexit.register(leave)
    load()
    gc.collect()
    gc.freeze()  # a collection in a fork would copy what it looks at
    own = os.fdopen(os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    task = next_task(own)
    status = 0 if task is None else perform(**task)
