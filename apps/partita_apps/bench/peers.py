"""Peers, each a small program for a Python that has it: their imports never enter this process. `children` runs them.

A program reads its task as a line of JSON and answers with one: `children` says which. Settings are the fastest that
each offers for one prompt: mlx-lm computes the next step while a token is read, llama.cpp keeps its file mapped.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

NAMES = ("llama.cpp", "mlx-lm", "transformers")
BATCHES = ("llama.cpp", "transformers")
"""Those whose program decodes several rows at once."""

SERVING = {
    "llama.cpp": (
        *("-m", "llama_cpp.server", "--model", "{model}", "--port", "{port}", "--n_ctx", "{context}"),
        *(
            "--n_threads",
            "{threads}",
            "--n_threads_batch",
            "{threads}",
            "--model_alias",
            "model",
            "--interrupt_requests",
            "False",
        ),
    ),
    "mlx-lm": ("-m", "mlx_lm.server", "--model", "{model}", "--port", "{port}"),
}
"""How a peer's Python is told to serve; llama.cpp's answers one client after the other."""
SERVERS = tuple(SERVING)

PRELUDE = """
import json, sys, time
task = json.loads(sys.stdin.readline())
def status(key):
    for line in open("/proc/self/status"):
        if line.startswith(key):
            return int(line.split()[1]) * 1024
def resident():
    if sys.platform == "linux":
        return status("VmRSS:")
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
def highest():
    return status("VmHWM:") if sys.platform == "linux" else resident()
def tell(**found):
    print(json.dumps(found), flush=True)
"""

_MEASURE = """
from importlib.metadata import version
def clock():
    return time.perf_counter(), time.process_time()
def since(begun, end=None):
    return [b - a for a, b in zip(begun, end or clock())]
def measure(once, library):
    for _ in range(task["warm"]):
        once(2)
    tell(**once(task["tokens"]), peak=highest(), cpu=time.process_time(), version=f"{library} {version(library)}")
"""

_LLAMA_CPP = """
from llama_cpp import Llama
rows, threads = task["rows"], task["threads"]
size = len(rows[0]) + task["tokens"] + 8
model = Llama(task["model"], n_ctx=size, n_threads=threads, n_threads_batch=threads, verbose=False)
def once(count):
    model.reset()
    begun = clock()
    model.eval(rows[0])
    ids = [model.sample(temp=0)]
    between, consumed = clock(), model.n_tokens
    for _ in range(count - 1):
        model.eval(ids[-1:])
        ids.append(model.sample(temp=0))
    return {"prompt": consumed, "tokens": [ids], "prefill": since(begun, between), "decode": since(between)}
"""

_LLAMA_CPP_ROWS = """
import llama_cpp as c, numpy as np
def together(count):  # sequences of a context of its own: the class above has one
    params = model.context_params
    params.n_ctx, params.n_seq_max = size * len(rows), len(rows)
    context = c.llama_init_from_model(model.model, params)
    batch = c.llama_batch_init(max(len(rows[0]), len(rows)), 0, 1)
    def step(entries):
        batch.n_tokens = len(entries)
        for i, (token, place, row) in enumerate(entries):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, place, 1, row
            batch.logits[i] = place + 1 >= len(rows[0])
        if c.llama_decode(context, batch):
            raise RuntimeError("llama_decode failed")
    def best(i):
        return int(np.ctypeslib.as_array(c.llama_get_logits_ith(context, i), (model.n_vocab(),)).argmax())
    begun, ids = clock(), []
    for row, prompt in enumerate(rows):
        step([(token, i, row) for i, token in enumerate(prompt)])
        ids.append([best(len(prompt) - 1)])
    memory = c.llama_get_memory(context)
    consumed = min(c.llama_memory_seq_pos_max(memory, row) for row in range(len(rows))) + 1
    between = clock()
    for i in range(count - 1):
        step([(own[-1], len(rows[0]) + i, row) for row, own in enumerate(ids)])
        for row, own in enumerate(ids):
            own.append(best(row))
    seconds = {"prefill": since(begun, between), "decode": since(between)}
    c.llama_batch_free(batch)
    c.llama_free(context)
    return {"prompt": consumed, "tokens": ids, **seconds}
measure(once if len(rows) == 1 else together, "llama-cpp-python")
"""

_MLX_LM = """
import mlx.core as mx
from mlx_lm import load
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache
(prompt,) = task["rows"]
if task["device"] == "cpu":
    mx.set_default_device(mx.cpu)
model, _ = load(task["model"])
if task["dtype"]:
    model.set_dtype(getattr(mx, task["dtype"]))
def once(count):
    cache, ids, times = make_prompt_cache(model), [], []
    begun = clock()
    for token, _ in generate_step(mx.array(prompt), model, max_tokens=count, prompt_cache=cache):
        ids.append(int(token))
        times.append(clock())
    consumed = cache[0].offset - len(ids)  # each token that was given has been fed, the last one too
    seconds = {"prefill": since(begun, times[0]), "decode": since(times[0], times[-1])}
    return {"prompt": consumed, "tokens": [ids], **seconds}
measure(once, "mlx-lm")
"""

_TRANSFORMERS = """
import torch
from transformers import AutoModelForCausalLM
torch.set_num_threads(task["threads"])
device = "cpu" if task["device"] == "cpu" else "cuda"  # torch's word for ROCm too
dtype = getattr(torch, task["dtype"] or "float32")
model = AutoModelForCausalLM.from_pretrained(task["model"], dtype=dtype).to(device).eval()
rows = torch.tensor(task["rows"], device=device)
@torch.inference_mode()
def once(count):
    begun = clock()
    out = model(rows, use_cache=True, logits_to_keep=1)
    chosen = [out.logits[:, -1:].argmax(-1)]
    chosen[0].tolist()
    between, consumed = clock(), out.past_key_values.get_seq_length()
    for _ in range(count - 1):
        out = model(chosen[-1], past_key_values=out.past_key_values, use_cache=True)
        chosen.append(out.logits[:, -1:].argmax(-1))
    ids = torch.cat(chosen, 1).tolist()
    return {"prompt": consumed, "tokens": ids, "prefill": since(begun, between), "decode": since(between)}
measure(once, "transformers")
"""

PROGRAMS = {
    "llama.cpp": PRELUDE + _MEASURE + _LLAMA_CPP + _LLAMA_CPP_ROWS,
    "mlx-lm": PRELUDE + _MEASURE + _MLX_LM,
    "transformers": PRELUDE + _MEASURE + _TRANSFORMERS,
}


@contextmanager
def model_for(peer: str | None, path: Path) -> Iterator[Path]:
    """The same weights in the form that the peer reads: the file itself, or a folder written for it."""
    from partita.errors import DataError

    if peer is None:
        yield path
        return
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
        if isinstance(value, Packed) and value.biases is None:
            return value
        if isinstance(value, Packed):
            scales, biases = (part.astype("float32") for part in value.grid)
            return replace(value, scales=scales, biases=biases)
        return value.astype("float32")

    checkpoint = open_checkpoint(path)
    if peer == "mlx-lm":
        write_mlx(checkpoint, folder, transform=float32)
    else:
        write_huggingface(checkpoint, folder)
