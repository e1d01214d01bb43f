"""Peers, each run as a small program of its own in the Python that has it: their imports never enter this process.

A program reads its task as JSON on standard input ({model, prompt, tokens, threads, runs, dtype}) and answers with one
JSON line per run, {"prefill": seconds, "decode": seconds}.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

NAMES = ("llama.cpp", "mlx-lm", "transformers")

_LLAMA_CPP = """
import json, sys, time
from llama_cpp import Llama
task = json.load(sys.stdin)
size = len(task["prompt"]) + task["tokens"] + 8
model = Llama(task["model"], n_ctx=size, n_threads=task["threads"], n_threads_batch=task["threads"], verbose=False)
for _ in range(task["runs"] + 1):
    model.reset()
    begun = time.perf_counter()
    model.eval(task["prompt"])
    token = model.sample(temp=0)
    between = time.perf_counter()
    for _ in range(task["tokens"] - 1):
        model.eval([token])
        token = model.sample(temp=0)
    print(json.dumps({"prefill": between - begun, "decode": time.perf_counter() - between}), flush=True)
"""

_MLX_LM = """
import json, sys, time
import mlx.core as mx
from mlx_lm import load
from mlx_lm.generate import generate_step
task = json.load(sys.stdin)
model, _ = load(task["model"])
if task["dtype"]:
    model.set_dtype(getattr(mx, task["dtype"]))
for _ in range(task["runs"] + 1):
    begun = between = time.perf_counter()
    for count, _ in enumerate(generate_step(mx.array(task["prompt"]), model, max_tokens=task["tokens"])):
        if count == 0:
            between = time.perf_counter()
    print(json.dumps({"prefill": between - begun, "decode": time.perf_counter() - between}), flush=True)
"""

_TRANSFORMERS = """
import json, sys, time
import torch
from transformers import AutoModelForCausalLM
task = json.load(sys.stdin)
torch.set_num_threads(task["threads"])
model = AutoModelForCausalLM.from_pretrained(task["model"], dtype=getattr(torch, task["dtype"] or "float32")).eval()
prompt = torch.tensor([task["prompt"]])
with torch.inference_mode():
    for _ in range(task["runs"] + 1):
        begun = time.perf_counter()
        out = model(prompt, use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1:].argmax(-1)
        between = time.perf_counter()
        for _ in range(task["tokens"] - 1):
            out = model(token, past_key_values=out.past_key_values, use_cache=True)
            token = out.logits[:, -1:].argmax(-1)
        print(json.dumps({"prefill": between - begun, "decode": time.perf_counter() - between}), flush=True)
"""

_PROGRAMS = {"llama.cpp": _LLAMA_CPP, "mlx-lm": _MLX_LM, "transformers": _TRANSFORMERS}


@contextmanager
def model_for(peer: str, path: Path) -> Iterator[Path]:
    """The same weights in the form that the peer reads: the file itself, or a folder written for it."""
    from partita.errors import DataError

    if peer == "llama.cpp":
        if path.suffix != ".gguf":
            raise DataError(f"llama.cpp reads GGUF files only: give --model a .gguf file, not {path}")
        yield path
        return
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "model"
        write_for(peer, path, folder)
        yield folder


def write_for(peer: str, path: Path, folder: Path) -> None:
    """A folder with the model's weights: packed for mlx-lm, with float32 scales so that it computes in float32."""
    from partita.checkpoint.open import open_checkpoint
    from partita.quantization import Packed
    from partita_convert.write_folder import write_huggingface, write_mlx

    def float32(_: str, value: Any) -> Any:
        if isinstance(value, Packed):
            scales, biases = (part.astype("float32") for part in value.grid)
            return replace(value, scales=scales, biases=biases)
        return value.astype("float32")

    checkpoint = open_checkpoint(path)
    if peer == "mlx-lm":
        write_mlx(checkpoint, folder, transform=float32)
    else:
        write_huggingface(checkpoint, folder)


def start(peer: str, python: str | None, task: dict[str, Any]) -> Iterator[dict[str, float]]:
    """Run the peer's program; yields one result a run, as they come, the first (warm-up) left out."""
    from partita.errors import BackendUnavailable

    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [python or sys.executable, "-c", _PROGRAMS[peer]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as child,
    ):
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(json.dumps(task))
        child.stdin.close()
        lines = [json.loads(line) for line in child.stdout if line.startswith("{")]
        if child.wait() or not lines:
            errors.seek(0)
            reason = (errors.read().strip().splitlines() or ["no output"])[-1]
            raise BackendUnavailable(f"{peer} does not run in {python or sys.executable}: {reason} (see --peer-python)")
        yield from lines[1:]
