#!/usr/bin/env python3
"""Run the numeric tests as on CPUs with fewer instructions than this one, and say in a line each how it went.

torch, oneDNN, MKL, OpenBLAS, numpy and numba choose by what a CPU has; each has a variable that makes it choose less.
Names of sets as arguments, or all that this CPU can stand for; "native" is this CPU as it is, which `make test` runs.
Not here: ways of telling MLX, whose kernels for a CPU are chosen when it is built. Invariant: the exit status is that
of the worst run.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = (
    "tests/conformance",
    *(f"tests/models/test_{name}.py" for name in ("family_logits", "train", "train_gradients", "train_peft")),
    *(f"tests/runtime/adapters/test_{name}.py" for name in ("adapting", "lora")),
    "tests/runtime/cache/test_kv_quality.py",
    "tests/runtime/checkpoint/test_experts.py",
    *(f"tests/runtime/inference/test_{name}.py" for name in ("perplexity", "speculative")),
    "tests/runtime/test_quantization.py",
    *(f"tests/runtime/training/test_{name}.py" for name in ("data_parallel", "optim", "train_loop")),
    *(f"tests/convert/test_{name}.py" for name in ("adapters", "fusing", "layouts", "quantize")),
    *(f"tests/convert/test_{name}.py" for name in ("write_gguf", "write_gguf_packed")),
    *(f"tests/interop/test_{name}.py" for name in ("mlx_lm", "transformers")),
    *(f"tests/apps/test_{name}.py" for name in ("bench_train", "finetune")),
    "tests/apps/test_finetune_resume.py::test_a_run_goes_on_on_another_backend",
    "tests/apps/test_distributed.py::test_two_processes_equal_one_with_twice_the_batch",
)
PYTEST = (
    "-m",
    "not slow and not interop and not agents",
    "--numprocesses=auto",
    "--maxprocesses=4",
    "--dist=worksteal",
)


def sets(machine: str, capability: str, dispatched: Sequence[str]) -> dict[str, dict[str, str]]:
    """Variables by the name of an instruction set. machine: as `platform` has it. capability: the widest that torch
    uses here. dispatched: what numpy uses here beyond its baseline, for it refuses a name that the CPU lacks."""
    if machine.lower() not in ("x86_64", "amd64"):
        return {"default": {"ATEN_CPU_CAPABILITY": "default"}}
    wide = [name for name in dispatched if name.startswith(("AVX512", "X86_V4"))]
    avx2 = {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
        "NPY_DISABLE_CPU_FEATURES": " ".join(wide),
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": "+avx2,+fma,+f16c,+bmi,+bmi2,+popcnt,+sse4.2,+ssse3",
    }
    sse = {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "MKL_CBWR": "COMPATIBLE",  # on CPUs that are not Intel's MKL heeds nothing else
        "OPENBLAS_CORETYPE": "Nehalem",
        "NPY_DISABLE_CPU_FEATURES": " ".join(dispatched),
        "NUMBA_CPU_NAME": "nehalem",
        "NUMBA_CPU_FEATURES": "+popcnt,+sse4.2,+ssse3",
    }
    return {"AVX512": {"avx2": avx2, "sse": sse}, "AVX2": {"sse": sse}}.get(capability, {})


def here() -> dict[str, dict[str, str]]:
    import numpy as np
    import torch

    found = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])  # pyright: ignore[reportOptionalSubscript]
    return {"native": {}, **sets(platform.machine(), torch.backends.cpu.get_cpu_capability(), found)}


def run(name: str, variables: Mapping[str, str]) -> int:
    """The status of pytest; all that it said is shown where that is not 0."""
    print(f"{name}: ", end="", flush=True)
    command = [sys.executable, "-m", "pytest", *PYTEST, *TESTS]
    environment = {**os.environ, **variables}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines = done.stdout.strip().splitlines()
    print(
        next((line for line in reversed(lines) if re.search(r"\d (passed|failed|error)", line)), "pytest did not run")
    )
    if done.returncode:
        print(done.stdout, file=sys.stderr)
    return done.returncode if done.returncode >= 0 else 128 - done.returncode  # a signal's number, as shells have it


def main(names: list[str]) -> int:
    known = here()
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"partita: no instruction set {unknown[0]} here; expected one of {', '.join(known)}", file=sys.stderr)
        return 2
    chosen = names or [name for name in known if name != "native"]
    if not chosen:
        print("this CPU has no more than the least that libraries ask for: `make test` is the run")
    return max((run(name, known[name]) for name in chosen), default=0)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
