"""One process alone on every backend; two together, as `torchrun` and `mlx.launch` would have started them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import partita_backends
from partita.backend import Backend

from .test_training_operations import TRAINERS

MEMBER = """
import numpy as np, partita_backends
ops = partita_backends.load({name!r}, device="cpu", dtype="float32")
group = partita_backends.group(ops)
again = partita_backends.group(ops)
assert group.world_size == again.world_size == 2
assert group.rank == again.rank == {rank}
x = ops.array(np.arange(3, dtype=np.float32) + 10 * group.rank)
total = group.all_sum(x)
twice = again.all_sum(total * 0.5)  # of a sum that may not be computed yet
group.wait(total, twice)
assert ops.to_numpy(total).tolist() == ops.to_numpy(twice).tolist() == [10, 12, 14], total
assert ops.to_numpy(x).tolist() == [10 * group.rank + i for i in range(3)]
counts = group.all_sum(ops.array(np.asarray([2**30 - 1 + group.rank], np.int32)))
table = group.all_gather(ops.array(np.arange(6, dtype=np.float32).reshape(3, 2) + 10 * group.rank).swapaxes(0, 1))
group.wait(counts, table)
assert ops.to_numpy(counts).tolist() == [2**31 - 1]
assert ops.to_numpy(table).tolist() == [[0, 2, 4], [1, 3, 5], [10, 12, 14], [11, 13, 15]], table
"""


def test_one_process_alone(ops: Backend) -> None:
    group = partita_backends.group(ops)
    x = ops.array(np.arange(6, dtype=np.float32).reshape(3, 2))
    found = group.all_sum(x), group.all_gather(x)
    group.wait(*found)
    assert (group.rank, group.world_size) == (0, 1)
    for y in found:
        np.testing.assert_array_equal(ops.to_numpy(y), ops.to_numpy(x))


@pytest.mark.parametrize("name", TRAINERS)
def test_two_processes_sum_and_gather(name: str, tmp_path: Path) -> None:
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
        command = [sys.executable, "-c", MEMBER.format(name=name, rank=rank)]
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
