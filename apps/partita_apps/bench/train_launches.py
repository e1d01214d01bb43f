"""What a training step launches, ours and a peer's, counted where it cannot be timed: structure, not time.

A step is forward, backward, clipping (mlx-lm has none) and AdamW, of adapters on all projections, over full rows. On
MLX the step's graph is counted as Metal would have it (`mlx_graph`), compiled on both sides. For torch on a GPU
operations are followed (`torch_graph`) on tensors of the device "meta": a torch that is built without CUDA
differentiates no tensor of a GPU that is not there. Each side counts in a process of its own, since what is counted
replaces functions.
"""

from __future__ import annotations

import inspect
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .children import answer
from .report import row
from .train_step import taken, trainer_of

PEERS = {"mlx-lm": "mlx", "peft": "torch"}
FEW = 8  # tokens of a pass that makes everything lazy that is not the step's

_MLX_LM = """
from functools import partial
import mlx.nn as nn, mlx.optimizers as optim
from mlx.utils import tree_flatten
from mlx_lm import load
from mlx_lm.tuner.trainer import default_loss
from mlx_lm.tuner.utils import linear_to_lora_layers
import json, sys
task = json.loads(sys.stdin.readline())
mx.set_default_device(mx.cpu)
nn.losses.cross_entropy = lambda logits, targets: mx.fast.cross_entropy(logits, targets).astype(logits.dtype)  # Metal's
model, _ = load(task["model"])
model.set_dtype(getattr(mx, task["dtype"]))
model.freeze()
linear_to_lora_layers(model, len(model.layers), {"rank": task["rank"], "scale": 2.0, "dropout": 0.0})
model.train()
optimizer = optim.AdamW(learning_rate=1e-4)
optimizer.init(model.trainable_parameters())
rows = mx.array(task["tokens"])
lengths = mx.array([[0, rows.shape[1] - 1]] * rows.shape[0])
gradients = nn.value_and_grad(model, default_loss)
state = [model.state, optimizer.state, mx.random.state]
mx.eval(state)
@partial(mx.compile, inputs=state, outputs=state)
def compiled(rows, lengths):
    (loss, _), grads = gradients(model, rows, lengths)
    optimizer.update(model, grads)
    return loss
def step():
    loss = compiled(rows, lengths)
    return [loss, *(x for _, x in tree_flatten([model.trainable_parameters(), optimizer.state]))]
print(json.dumps({"operations": counted_with_gradients(step)}))
"""

_PEFT = """
import json, sys
from transformers import AutoConfig, AutoModelForCausalLM
from peft import LoraConfig, get_peft_model
task = json.loads(sys.stdin.readline())
torch.nn.functional.scaled_dot_product_attention = differentiable_attention
config = AutoConfig.for_model(**task["config"])
with torch.device("meta"):
    model = AutoModelForCausalLM.from_config(
        config, dtype=getattr(torch, task["dtype"]), attn_implementation="sdpa"
    )
    lora = LoraConfig(r=task["rank"], lora_alpha=2 * task["rank"], target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, lora).train()
    rows = torch.empty(len(task["tokens"]), len(task["tokens"][0]), dtype=torch.long)
trained = [x for x in model.parameters() if x.requires_grad]
inputs, targets = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
optimizer = torch.optim.AdamW(trained, lr=1e-4, foreach=True)
def step():
    model(input_ids=inputs, labels=inputs, shift_labels=targets).loss.backward()
    grads = [x.grad for x in trained]  # as clip_grad_norm_ does it on a GPU
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
    torch._foreach_mul_(grads, torch.clamp(1.0 / (norm + 1e-6), max=1.0))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
step()
with Followed() as followed:
    step()
print(json.dumps(followed.summary()))
"""


def run(
    *,
    model: Path,
    backend: str | None,
    against: str | None,
    dtype: str | None,
    batch: int,
    length: int,
    rank: int,
    checkpoint: bool,
    peer_python: str | None,
) -> list[dict[str, Any]]:
    """Rows of launches on MLX or of operations on torch, in all and by name. checkpoint: blocks are computed again.

    DataError: the peer has another backend."""
    from partita.errors import DataError

    own = PEERS.get(against or "", backend or "mlx")
    if backend not in (None, own):
        raise DataError(f"{against} is counted beside {own}, not {backend}: leave out --backend")
    tokens = np.tile(np.arange(length + 1) % 97, (batch, 1)).tolist()
    task = {"backend": own, "tokens": tokens, "rank": rank, "dtype": dtype or "bfloat16", "checkpoint": checkpoint}
    theirs = None
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "model"
        if own == "mlx":
            from .peers import write_for

            write_for("mlx-lm", model, folder)
        command = ["-m", "partita_apps.bench.train_launches"]
        ours = answer(sys.executable, command, {**task, "model": str(folder if own == "mlx" else model)}, None)
        if against is not None:
            program, more = _peer(against, model, folder)
            theirs = answer(peer_python or sys.executable, ["-c", program], {**task, **more}, against)
    where, unit = ("mlx", "launches") if own == "mlx" else ("cuda", "operations")
    name = f"train, {where} {task['dtype']}, {batch} × {length} tokens, rank {rank}" + ", recomputed" * checkpoint
    return _rows(name, unit, ours["operations"], theirs and theirs["operations"])


def _peer(against: str, model: Path, folder: Path) -> tuple[str, dict[str, Any]]:
    """A peer's program, and what its task has beside ours."""
    if against == "mlx-lm":
        from . import mlx_graph

        return inspect.getsource(mlx_graph) + _MLX_LM, {"model": str(folder)}
    from partita.checkpoint.open import open_checkpoint
    from partita_convert.config_files import huggingface_config
    from partita_convert.layouts import as_huggingface

    from . import torch_graph

    config, _ = huggingface_config(as_huggingface(open_checkpoint(model)))
    return inspect.getsource(torch_graph) + _PEFT, {"config": config}


def _rows(name: str, unit: str, ours: Mapping[str, int], theirs: Mapping[str, int] | None) -> list[dict[str, Any]]:
    peer = theirs or {}
    rows = [row(name, sum(ours.values()), sum(peer.values()) if theirs else None, unit)]
    names = sorted({*ours, *peer}, key=lambda each: -max(ours.get(each, 0), peer.get(each, 0)))
    return rows + [row(f"  {each}", ours.get(each, 0), peer.get(each, 0) if theirs else None, unit) for each in names]


def _on_mlx(model: str, tokens: Any, rank: int, dtype: str, again: bool) -> dict[str, int]:
    import mlx.core as mx

    import partita_backends
    from partita.checkpoint.open import open_checkpoint

    from . import mlx_graph
    from .train import full_rows

    ops: Any = partita_backends.load("mlx", device="cpu", dtype=dtype)
    ops.device, ops.compiles = "metal", True
    trainer = trainer_of(ops, open_checkpoint(Path(model)), tokens, rank, again)
    trainer.measure([full_rows(np.asarray(tokens, np.int32)[:1, : FEW + 1])], "few")  # weights are lazy
    mx.eval(trainer.values, trainer.moments.m, trainer.moments.v)
    return mlx_graph.counted_with_gradients(lambda: taken(trainer))


def _on_gpu(model: str, tokens: Any, rank: int, dtype: str, again: bool) -> dict[str, int]:
    from partita.checkpoint.open import open_checkpoint

    from .meta_gpu import followed

    return followed(open_checkpoint(Path(model)), tokens, rank, dtype, again).summary()["operations"]


def count(
    *, backend: str, model: str, tokens: list[list[int]], rank: int, dtype: str, checkpoint: bool
) -> dict[str, int]:
    """Of ours, in this process: launches or operations by name. checkpoint: blocks are computed again."""
    return (_on_mlx if backend == "mlx" else _on_gpu)(model, tokens, rank, dtype, checkpoint)


if __name__ == "__main__":
    from partita.errors import PartitaError

    try:
        print(json.dumps({"operations": count(**json.loads(sys.stdin.readline()))}))
    except PartitaError as error:
        sys.exit(str(error))
