"""Peers that train, each a small program for a Python that has it; `train.py` runs them.

A program reads its task as a line of JSON ({model, tokens (rows of length + 1), rank, alpha, rate, threads, device})
and answers {loaded}: bytes, after a pass over a few tokens has touched every weight. For each further line it takes a
step and answers {loss, seconds, cpu_seconds}; when there are no more, {peak}: bytes. Settings are the fastest that each
offers for float32: no activation is computed twice, mlx-lm's step is compiled as in its trainer.
"""

from __future__ import annotations

from .peers import PRELUDE

NAMES = ("mlx-lm", "peft")

_COMMON = """
def forget():
    if sys.platform == "linux":
        open("/proc/self/clear_refs", "w").write("5")
def serve(step, loaded, peak):
    tell(loaded=loaded)
    for _ in sys.stdin:
        begun, used = time.perf_counter(), time.process_time()
        loss = step()
        tell(loss=loss, seconds=time.perf_counter() - begun, cpu_seconds=time.process_time() - used)
    tell(peak=peak())
"""

_PEFT = """
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
torch.set_num_threads(task["threads"])
device = "cpu" if task["device"] == "cpu" else "cuda"  # torch's word for ROCm too
model = AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.float32).to(device)
config = LoraConfig(r=task["rank"], lora_alpha=task["alpha"], target_modules="all-linear", task_type="CAUSAL_LM")
model = get_peft_model(model, config).train()
trained = [x for x in model.parameters() if x.requires_grad]
rows = torch.tensor(task["tokens"], device=device)
inputs, targets = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
with torch.no_grad():
    model(input_ids=inputs[:1, :8])
optimizer = torch.optim.AdamW(trained, lr=task["rate"])
def step():
    found = model(input_ids=inputs, labels=inputs, shift_labels=targets)
    found.loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return found.loss.item()
if device == "cuda":
    torch.cuda.reset_peak_memory_stats()
    serve(step, torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated)
else:
    forget()
    serve(step, resident(), highest)
"""

_MLX_LM = """
from functools import partial
import mlx.core as mx, mlx.nn as nn, mlx.optimizers as optim
from mlx_lm import load
from mlx_lm.tuner.trainer import default_loss
from mlx_lm.tuner.utils import linear_to_lora_layers
if task["device"] == "cpu":
    mx.set_default_device(mx.cpu)
model, _ = load(task["model"])
model.freeze()
config = {"rank": task["rank"], "scale": task["alpha"] / task["rank"], "dropout": 0.0}
linear_to_lora_layers(model, len(model.layers), config)
model.train()
mx.eval(model.parameters())
rows = mx.array(task["tokens"])
mx.eval(model(rows[:1, :8]))
mx.clear_cache()
optimizer = optim.AdamW(learning_rate=task["rate"])
gradients = nn.value_and_grad(model, default_loss)
lengths = mx.array([[0, rows.shape[1] - 1]] * rows.shape[0])
state = [model.state, optimizer.state, mx.random.state]
@partial(mx.compile, inputs=state, outputs=state)
def compiled(rows, lengths):
    (loss, _), grads = gradients(model, rows, lengths)
    optimizer.update(model, grads)
    return loss
def step():
    loss = compiled(rows, lengths)
    mx.eval(state, loss)
    return loss.item()
if task["device"] == "cpu":
    forget()
    serve(step, resident(), highest)
else:
    mx.reset_peak_memory()
    serve(step, mx.get_active_memory(), mx.get_peak_memory)
"""

PROGRAMS = {"mlx-lm": PRELUDE + _COMMON + _MLX_LM, "peft": PRELUDE + _COMMON + _PEFT}
