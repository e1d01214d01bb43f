"""A model's process that says what its model's name holds, in hexadecimal, behind as many frames as its digit says."""

from __future__ import annotations

import os
import sys
import time

from partita_apps.serve.channel import Line
from partita_apps.serve.frames import VERSION, Hello, Load, Loaded

if __name__ == "__main__":
    line = Line.of(sys.argv[1:])
    line.send(Hello(VERSION, os.getpid()))
    load = line.receive()
    assert isinstance(load, Load)
    after, said = load.model.split(":")
    if after == "loaded":
        line.send(Loaded("stub", "cpu", "float32", "16", 9, 9, 1, 1, 1))
        line.receive()
    line._connection.sendall(bytes.fromhex(said))
    time.sleep(600)
