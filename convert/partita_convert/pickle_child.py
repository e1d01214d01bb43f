"""A program: one PyTorch weights file in, one safetensors file out. Run as `python -I pickle_child.py SOURCE TARGET`.

Unpickling a stranger's file is the most dangerous thing that is done here, so it happens in this process alone: torch's
own restricted unpickler (`weights_only`) of a release without known holes, limits on memory, time and sizes of files,
and an audit hook that ends the process at the first attempt to start a program, open a connection or write anything
but TARGET. Prints one JSON document: {"tensors": count} or {"error": line}. Imports nothing of partita: it is a
program of its own, and the one place in this package that knows torch.
"""

from __future__ import annotations

import json
import os
import re
import sys
from typing import Any, TypeGuard

OLDEST_TORCH = (2, 10)  # earlier releases' restricted unpickler can be made to corrupt memory
MIB = 1 << 20
SECONDS, BYTES_A_SECOND = 120, 20 * MIB  # of processor time: a start, and far slower than any disk
ADDRESSES = 24 << 30  # what the libraries map, untouched most of it
EXIT_BLOCKED = 86
# derived from the config at load by everybody; older files keep them as buffers
DERIVED = (".rotary_emb.inv_freq", ".masked_bias")
TYPES = {
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.float64": "F64",
    "torch.float8_e4m3fn": "F8_E4M3",
    "torch.float8_e5m2": "F8_E5M2",
    "torch.int64": "I64",
    "torch.int32": "I32",
    "torch.int16": "I16",
    "torch.int8": "I8",
    "torch.uint8": "U8",
    "torch.bool": "BOOL",
}
BLOCKED = {
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "subprocess.Popen", "pty.spawn"),
    *("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg", "pty.fork"),
    *("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown"),
    *("shutil.rmtree", "shutil.move", "shutil.copyfile", "os.putenv", "os.kill"),
}


class Refused(Exception):
    """The file is not what is read here; the message is one line for a person."""


def limit(size: int) -> None:
    """Bounds for a file of `size` bytes, where the system has them. The file mapped and a copy are twice its size."""
    try:
        import resource
    except ImportError:
        return
    bounds = {
        resource.RLIMIT_AS: ADDRESSES + 4 * size,
        resource.RLIMIT_CPU: SECONDS + size // BYTES_A_SECOND,
        resource.RLIMIT_FSIZE: 2 * size + 64 * MIB,
        resource.RLIMIT_CORE: 0,
    }
    for what, bound in bounds.items():
        _, hard = resource.getrlimit(what)
        own = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(what, (own, own))


def guard(target: str) -> None:
    """End the process at whatever reading weights does not need. Set after torch is imported, which needs more."""
    allowed = os.path.abspath(target)

    def see(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = bool(set(mode or "") & set("wax+")) or bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            if not writes or (isinstance(path, str) and os.path.abspath(path) == allowed):
                return
        elif event not in BLOCKED:
            return
        os.write(1, (json.dumps({"error": f"tried to do more than hold tensors ({event})"}) + "\n").encode())
        os._exit(EXIT_BLOCKED)

    sys.addaudithook(see)


def read(torch: Any, path: str) -> dict[Any, Any]:
    """The tensors by name. The zip form is mapped, not read; the form before torch 1.6 is read whole."""
    import pickle

    with open(path, "rb") as file:
        mapped = file.read(4) == b"PK\x03\x04"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        found = re.search(r"[Uu]nsupported (?:global|class|operand)[^\n]*?([\w.]+\.[\w.]+)|GLOBAL ([\w.]+)", str(error))
        what = next((part for part in (found.groups() if found else ()) if part), "")
        raise Refused(f"holds more than tensors{f' ({what})' if what else ''}, which could run code") from None
    except (RuntimeError, ValueError, KeyError, EOFError, OSError, TypeError, AttributeError, IndexError) as error:
        reason = " ".join(str(error).split()).partition(". ")[0] or type(error).__name__
        raise Refused(f"is not a readable PyTorch file ({reason[:200]}): fetch it again") from None
    if not _is_dict(state):
        raise Refused(f"holds a {type(state).__name__}, not tensors by name")
    return state


def _is_dict(value: object) -> TypeGuard[dict[Any, Any]]:
    return isinstance(value, dict)


def checked(torch: Any, state: dict[Any, Any]) -> dict[str, Any]:
    """The tensors to write, each a plain dense one."""
    kept: dict[str, Any] = {}
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise Refused(f"holds {name!r}, a {type(value).__name__}: only tensors by name are read")
        if name.endswith(DERIVED):
            continue
        dtype = str(value.dtype)
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu" or dtype not in TYPES:
            raise Refused(f"holds {name!r} as {dtype}, {value.layout} on {value.device}, which is not read")
        kept[name] = value.detach()
    return kept


def write(torch: Any, tensors: dict[str, Any], target: str) -> None:
    """A safetensors file, one tensor in memory at a time, in an order that depends on nothing but names and types."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # aligned without gaps
    for name in names:
        value = tensors[name]
        start, end = end, end + value.numel() * value.element_size()
        header[name] = {"dtype": TYPES[str(value.dtype)], "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(target, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            value = tensors[name]
            if value.numel():
                file.write(memoryview(value.contiguous().reshape(-1).view(torch.uint8).numpy()))


def main(source: str, target: str) -> dict[str, Any]:
    try:
        import torch
    except ImportError:
        raise Refused("needs torch to be read, which is not installed: pip install 'partita[torch]'") from None
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if version < OLDEST_TORCH:
        raise Refused(f"needs torch {OLDEST_TORCH[0]}.{OLDEST_TORCH[1]} to be read safely, {torch.__version__} is here")
    torch.set_num_threads(1)
    limit(os.path.getsize(source))
    guard(target)
    try:
        tensors = checked(torch, read(torch, source))
        write(torch, tensors, target)
    except MemoryError:
        raise Refused("asks for more memory than a file of its size can need") from None
    return {"tensors": len(tensors)}


if __name__ == "__main__":
    try:
        report = main(sys.argv[1], sys.argv[2])
    except Refused as error:
        report = {"error": str(error)}
    print(json.dumps(report))
    sys.exit("error" in report)
