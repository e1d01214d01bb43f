"""Runs `partita` again and again, each time in a fork of this process, which has imported what fine-tuning imports: a
command is in a process of its own, as it is for people, without seconds of imports. Only where fork is safe: on Linux.

A task is a line of JSON on standard input, `{"arguments": […], "out": path, "err": path}`; its exit status is the
answer, a line on standard output. One at a time; the process ends with its input.
"""

from __future__ import annotations

import json
import os
import runpy
import sys

import matplotlib.figure  # noqa: F401
import torch  # noqa: F401

import partita_apps.cli
import partita_apps.finetune.run  # noqa: F401
import partita_backends.torch.cpu  # noqa: F401


def next_task() -> list[str] | None:
    """The arguments of a command, in a fork whose streams are those of the task; None at the end."""
    for line in sys.stdin:
        task = json.loads(line)
        child = os.fork()
        if not child:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            for number, path in ((1, task["out"]), (2, task["err"])):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
            return task["arguments"]
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    return None


if __name__ == "__main__":
    arguments = next_task()
    if arguments is not None:
        sys.argv[1:] = arguments
        del sys.modules["partita_apps.cli"]  # as `python -m` runs it
        runpy.run_module("partita_apps.cli", run_name="__main__", alter_sys=True)
