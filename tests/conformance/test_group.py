"""Two processes that train together, as `torchrun` and `mlx.launch` would have started them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from .test_training_operations import TRAINERS

MEMBER = """
import numpy as np, partita_backends
ops = partita_backends.load({name!r}, device="cpu", dtype="float32")
assert ops.world == 2
x = ops.array(np.arange(3, dtype=np.float32) + 10 * ops.rank)
total = ops.all_sum(x)
assert ops.to_numpy(total).tolist() == [10, 12, 14], total
assert ops.to_numpy(x).tolist() == [10 * ops.rank + i for i in range(3)]
"""


@pytest.mark.parametrize("name", TRAINERS)
def test_two_processes_sum(name: str, tmp_path: Path) -> None:
    """Started with what torchrun and mlx.launch put in the environment."""
    ports = free_ports(2)
    hosts = tmp_path / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in ports]))
    members = []
    for rank in range(2):
        environment = os.environ | {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)}
        if name == "torch":
            given = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": ports[0]}
            environment = os.environ | {"MASTER_ADDR": "127.0.0.1"} | {key: str(x) for key, x in given.items()}
        command = [sys.executable, "-c", MEMBER.format(name=name)]
        members.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        for member in members:
            _, errors = member.communicate(timeout=60)
            assert member.returncode == 0, errors
    finally:
        for member in members:
            member.kill()
            member.wait()


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
