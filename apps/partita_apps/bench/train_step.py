"""A step of our trainer, written down and not computed: what `train_launches` counts on MLX, and `meta_gpu` follows.

Not here: what is counted of it. It imports no array library.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def trainer_of(ops: Any, checkpoint: Any, tokens: Any, rank: int, again: bool) -> Any:
    """A trainer before its first step, and nothing left to be made that is not the step's."""
    from partita.adapters.lora import LoraConfig
    from partita.model.load import load_decoder
    from partita.training.trainable import adapted
    from partita.training.trainer import TrainConfig, Trainer

    from .train import Repeated, full_rows

    decoder = load_decoder(ops, checkpoint, stack=False)
    trainable, values = adapted(ops, decoder, LoraConfig(rank=rank, alpha=2 * rank))
    batch = full_rows(np.asarray(tokens, np.int32))
    config = TrainConfig(2**30, schedule="constant", grad_checkpoint=again)
    return Trainer(ops, trainable, values, config, Repeated(batch))


def taken(trainer: Any) -> list[Any]:
    """What its next step gives, written down and not computed: what the host reads of it, values and moments."""
    from partita.backend import Memory

    read: list[Any] = []

    def fetch(x: Any) -> Any:
        read.append(x)
        return lambda: np.ones(x.shape, np.float32)

    def nothing(*arrays: Any) -> None:
        del arrays

    ops = trainer.ops
    ops.fetch, ops.launch, ops.memory = fetch, nothing, lambda: Memory(0, 0, 0, 0)
    next(trainer.run())
    return [*read, *trainer.values.values(), *trainer.moments.m.values(), *trainer.moments.v.values()]
