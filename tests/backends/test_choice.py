"""What `auto` picks, what it passes over and why: libraries and platforms that fail are stand-ins, the walk is real."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import psutil
import pytest
import torch

import partita_backends
from partita.errors import BackendUnavailable, DataError
from partita_backends import process_memory
from partita_backends.torch import weights

GIB = 2**30
OLD_DRIVER = "CUDA initialization: The NVIDIA driver on your system is too old (found version 11040)."


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A PC, and torch with a GPU that works and has 8 GiB, 6 of them free; whoever takes this breaks it."""
    ones = torch.ones
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (6 * GIB, 8 * GIB))
    monkeypatch.setattr(torch, "ones", lambda *size, device=None: ones(*size))
    monkeypatch.setattr(weights, "_found_on_gpu", lambda: (None, None))
    return monkeypatch


def too_old() -> bool:
    warnings.warn(OLD_DRIVER, UserWarning, stacklevel=1)
    return False


def failing(error: Exception):
    def fail(*arguments, **options):
        raise error

    return fail


def test_every_backend_is_a_candidate_and_numpy_the_last() -> None:
    assert {name for name, _ in partita_backends.CANDIDATES} == set(partita_backends.names())
    assert {device for _, device in partita_backends.CANDIDATES} == set(partita_backends.DEVICES)
    assert partita_backends.CANDIDATES[-1] == ("numpy", "cpu")


def test_a_gpu_that_works_is_taken(gpu: pytest.MonkeyPatch) -> None:
    for choice in (partita_backends.choose(), partita_backends.choose("torch"), partita_backends.choose(device="cuda")):
        assert (choice.backend.name, choice.backend.device, choice.backend.dtype) == ("torch", "cuda", "bfloat16")
        assert choice.fallback is None
    assert partita_backends.choose().passed[0].reason == "Metal is on Apple Silicon only"


def test_a_gpu_for_which_triton_compiles_nothing_is_taken_and_said_to_be_slow(gpu: pytest.MonkeyPatch) -> None:
    gpu.undo()
    assert weights._found_on_gpu()[0] is None
    gpu.setattr(weights, "_found_on_gpu", lambda: (None, "Failed to find C compiler"))
    line = weights.without_kernels("cuda")
    assert line == "products with packed weights are slow, as triton cannot be used (Failed to find C compiler)"


@pytest.mark.parametrize(
    ("where", "what", "words"),
    [
        ("cuda.is_available", lambda: False, ["torch finds no CUDA device"]),
        ("cuda.is_available", too_old, ["torch finds no CUDA device", "driver on your system is too old"]),
        ("cuda.is_available", failing(RuntimeError("cudaGetDeviceCount")), ["torch cannot use CUDA", "DeviceCount"]),
        ("cuda.set_device", failing(RuntimeError("invalid device ordinal\nCompile with")), ["invalid device ordinal)"]),
        ("cuda.mem_get_info", failing(RuntimeError("unknown error")), ["torch cannot use CUDA", "unknown error"]),
        ("ones", failing(RuntimeError("no kernel image is available")), ["torch cannot use CUDA", "no kernel image"]),
        ("ones", failing(AssertionError("not compiled with CUDA")), ["AssertionError: not compiled"]),
    ],
)
def test_a_gpu_that_fails_is_passed_over_unless_it_was_named(gpu: pytest.MonkeyPatch, where, what, words) -> None:
    gpu.setattr(f"torch.{where}", what)
    said: list[str] = []
    for name in ("auto", "torch"):
        backend = partita_backends.load(name, on_fallback=said.append)
        assert (backend.name, backend.device) == ("torch", "cpu")
        line = said.pop()
        assert line.startswith("computing with torch on cpu: ")
        assert line.isprintable()
        assert all(word in line for word in words)
    for name in ("auto", "torch"):
        with pytest.raises(BackendUnavailable, match=r"leave .*`device` out") as refused:
            partita_backends.load(name, device="cuda", on_fallback=said.append)
        assert all(word in str(refused.value) for word in words)
    assert partita_backends.load(device="cpu", on_fallback=said.append).name == "torch"
    assert not said


def test_a_warning_of_a_gpu_that_works_is_still_given(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(torch.cuda, "set_device", lambda index: warnings.warn("an old GPU", UserWarning, stacklevel=1))
    with pytest.warns(UserWarning, match="an old GPU"):
        assert partita_backends.load().device == "cuda"


def test_a_gpu_without_room_is_passed_over_unless_it_was_named(gpu: pytest.MonkeyPatch) -> None:
    asked = []

    def needs(ops):
        asked.append(ops.device)
        return 6 * GIB + 1

    choice = partita_backends.choose(needs=needs)
    assert (choice.backend.device, asked) == ("cpu", ["cuda"])
    assert choice.fallback == "computing with torch on cpu: the model needs 6.0 GiB, CUDA has 6.0 GiB free"
    with pytest.raises(BackendUnavailable, match=r"CUDA has .* free: leave `device` out"):
        partita_backends.load(device="cuda", needs=needs)
    assert partita_backends.load(needs=lambda ops: 6 * GIB).device == "cuda"


def test_rocm_goes_by_its_own_name(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(torch.version, "cuda", None)
    gpu.setattr(torch.version, "hip", "7.0")
    assert partita_backends.load().device == partita_backends.load(device="rocm").device == "rocm"
    with pytest.raises(BackendUnavailable, match="built without CUDA"):
        partita_backends.load(device="cuda")


def test_a_build_for_the_cpu_is_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    choice = partita_backends.choose()
    assert (choice.backend.name, choice.backend.device, choice.fallback) == ("torch", "cpu", None)
    assert "this torch is built without CUDA" in choice.reason


# --- Apple Silicon


@pytest.fixture
def apple(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A Mac whose Metal is MLX's CPU device in truth: 8 GiB recommended, of which 1 is used."""
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "set_default_device", lambda device: None)
    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 8 * GIB})
    monkeypatch.setattr(mx, "get_active_memory", lambda: GIB)
    for settle in ("set_wired_limit", "set_cache_limit", "set_default_stream", "new_stream"):
        monkeypatch.setattr(mx, settle, lambda _: None)
    return monkeypatch


def test_metal_comes_first(apple: pytest.MonkeyPatch) -> None:
    choice = partita_backends.choose()
    assert (choice.backend.name, choice.backend.device, choice.passed) == ("mlx", "metal", ())
    assert choice.reason == "the first choice"


def test_metal_that_is_missing_is_passed_over_and_so_is_one_without_room(apple: pytest.MonkeyPatch) -> None:
    assert partita_backends.load(needs=lambda ops: 7 * GIB).device == "metal"  # whatever others use of the machine's
    small = partita_backends.choose(needs=lambda ops: 7 * GIB + 1)
    assert (small.backend.name, small.backend.device) == ("torch", "cpu")
    assert "Metal has 7.0 GiB free" in (small.fallback or "")
    apple.setattr(mx.metal, "is_available", lambda: False)
    missing = partita_backends.choose()
    assert (missing.backend.name, missing.backend.device) == ("torch", "cpu")
    assert missing.fallback == "computing with torch on cpu: MLX finds no Metal device"
    assert partita_backends.choose("mlx").fallback == "computing with mlx on cpu: MLX finds no Metal device"
    with pytest.raises(BackendUnavailable, match=r"no Metal device: .*`backend` and `device`"):
        partita_backends.load("mlx", device="metal")


def test_metal_that_fails_says_how(apple: pytest.MonkeyPatch) -> None:
    apple.setattr(mx, "device_info", failing(RuntimeError("[metal::device] no device")))
    assert "mlx cannot use Metal (RuntimeError: [metal::device] no device)" in (
        partita_backends.choose().fallback or ""
    )


# --- names


@pytest.mark.parametrize(
    ("name", "device", "words"),
    [
        ("auto", "tpu", "no device 'tpu': give `device` cpu or cuda or metal or rocm"),
        ("torch", "metal", "the torch backend has no device 'metal': give `device` cpu or cuda or rocm"),
        ("mlx", "cuda", "the mlx backend has no device 'cuda': give `device` cpu or metal"),
        ("numpy", "cuda", "the numpy backend has no device 'cuda': give `device` cpu"),
        ("auto", "mps", "`backend` mlx `device` metal"),
        ("torch", "mps", "`backend` mlx `device` metal"),
        ("mlx", "metal", "Metal is on Apple Silicon only"),
    ],
)
def test_a_device_that_cannot_be(name: str, device: str, words: str) -> None:
    with pytest.raises(BackendUnavailable, match=words):
        partita_backends.load(name, device=device)


def test_what_the_last_resort_cannot_do_is_its_own_message() -> None:
    with pytest.raises(DataError, match="numpy backend computes in float32 only"):
        partita_backends.load("numpy", dtype="bfloat16")


# --- started together


@pytest.fixture
def member(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    return monkeypatch


def test_a_process_among_others_takes_what_they_take(member: pytest.MonkeyPatch) -> None:
    choice = partita_backends.choose()
    assert (choice.backend.name, choice.backend.device, choice.fallback) == ("torch", "cpu", None)
    assert partita_backends.load("torch", device="cpu").device == "cpu"
    with pytest.raises(BackendUnavailable, match="started together for backend torch"):
        partita_backends.load("numpy")
    with pytest.raises(BackendUnavailable, match="the torch backend has no device 'metal'"):
        partita_backends.load(device="metal")


def test_a_process_among_others_never_goes_on_with_another_device(
    gpu: pytest.MonkeyPatch, member: pytest.MonkeyPatch
) -> None:
    assert partita_backends.load(needs=lambda ops: 99 * GIB).device == "cuda"
    gpu.setattr(torch.cuda, "set_device", failing(RuntimeError("invalid device ordinal")))
    with pytest.raises(BackendUnavailable, match=r"torch cannot be used .*invalid device ordinal"):
        partita_backends.load()


# --- libraries and platforms, each in a process of its own

TELL = """
import json, platform, sys
import ml_dtypes, numpy, psutil
import partita_backends
{before}
choice = partita_backends.choose()
rows = [vars(row) for row in partita_backends.status(partita_backends.survey())]
print(json.dumps([choice.backend.name, choice.reason, choice.fallback, rows]))
"""
HIDE = """
from importlib.machinery import PathFinder
class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name in ("mlx", "torch") else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""


def chosen(folder: Path, files: dict[str, str] | None = None, before: str = "") -> list:
    """What a process says in which these files come before what is installed."""
    for name, text in (files or {}).items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(text)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-W", "error", "-c", TELL.format(before=before)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("raises", "words"),
    [
        ("raise ImportError('libtorch_cpu.so: cannot open shared object file')", "ImportError: libtorch_cpu.so"),
        ("raise OSError('[WinError 126] c10.dll or one of its dependencies')", "OSError: [WinError 126]"),
        ("raise RuntimeError('compiled against another ABI\\nsecond line')", "RuntimeError: compiled against another"),
        ("_C", "NameError: name '_C' is not defined"),
    ],
)
def test_a_library_that_cannot_be_imported(tmp_path: Path, raises: str, words: str) -> None:
    name, reason, fallback, rows = chosen(tmp_path, {"torch/__init__.py": raises})
    assert name == "mlx"
    assert fallback.startswith("computing with mlx on cpu: torch cannot be imported (")
    assert words in fallback
    assert "second line" not in fallback
    assert fallback.count("cannot be imported") == reason.count("cannot be imported") == 1
    assert [row["available"] for row in rows] == [True, False, True]
    assert words in rows[1]["reason"]


def test_no_library_can_be_imported(tmp_path: Path) -> None:
    files = {"torch/__init__.py": "raise OSError('libtorch.so')", "mlx/core.py": "raise ImportError('libmlx.so')"}
    name, _, fallback, rows = chosen(tmp_path, files)
    assert name == "numpy"
    assert "torch cannot be imported (OSError: libtorch.so)" in fallback
    assert "mlx cannot be imported (ImportError: libmlx.so)" in fallback
    assert [row["available"] for row in rows] == [False, False, True]


@pytest.mark.parametrize(
    ("system", "machine", "words"),
    [
        ("darwin", "x86_64", ["mlx package and is not offered", "torch package and is not offered"]),
        ("win32", "AMD64", ["mlx package and is not offered", "pip install 'partita[torch]'"]),
        ("linux", "x86_64", ["pip install 'partita[mlx]'", "pip install 'partita[torch]'"]),
    ],
)
def test_no_library_is_installed(tmp_path: Path, system: str, machine: str, words: list[str]) -> None:
    place = f"{HIDE}\nsys.platform = {system!r}\nplatform.machine = lambda: {machine!r}"
    name, reason, fallback, rows = chosen(tmp_path, before=place)
    assert (name, fallback) == ("numpy", None)
    assert all(word in reason for word in words)
    assert [row["available"] for row in rows] == [False, False, True]


def test_nothing_is_imported_that_need_not_be() -> None:
    """MLX on Linux comes after torch, and its Metal is ruled out by the platform."""
    code = (
        "import sys, partita_backends; partita_backends.choose(); print('torch' in sys.modules, 'mlx' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["True", "False"]


def test_memory_is_known_where_there_is_no_resource_module(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = SimpleNamespace(rss=3, peak_wset=5)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(memory_info=lambda: memory))
    found = process_memory.read()
    assert (found.active, found.peak) == (3, 5)
    process_memory.reset_peak()
