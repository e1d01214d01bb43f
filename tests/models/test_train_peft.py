"""Ten steps of adapters beside peft, transformers and torch's AdamW: the same data, the same initial values. And the
folders that we write, read by peft."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import partita_backends
from partita.adapters.lora import LoraConfig
from partita.adapters.write import write_adapter
from partita.cache.kv_format import KVFormat
from partita.cache.spec import plan
from partita.cache.state import Cache
from partita.training.optim import AdamW
from partita.training.trainer import Step, TrainConfig, Trainer

from .. import bounds
from ..runtime.training.runs import Fixed, batch_of, documents, lora

STEPS = 10
OURS = {
    "lora": LoraConfig(rank=4, alpha=8),
    "lora-some": LoraConfig(rank=8, alpha=8, targets="q_proj,v_proj,down_proj", layers=2),
    "rslora": LoraConfig(rank=4, alpha=8, rslora=True),
    "dora": LoraConfig(rank=4, alpha=8, dora=True),
}
SETTINGS = TrainConfig(STEPS, 5e-3, "linear", warmup=3, clip=0.5, optimizer=AdamW(weight_decay=0.1))


def batches() -> list:
    found = [documents(2, 24, 280, seed) for seed in range(STEPS)]
    return [batch_of([[document[:20]] for document in pair], masked=4) for pair in found]


def theirs(folder: Path, config: LoraConfig, values: dict[str, np.ndarray]) -> tuple[list[float], list[float]]:
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    count = base.config.num_hidden_layers
    model = peft.get_peft_model(
        base,
        peft.LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,  # pyright: ignore[reportArgumentType]
            target_modules="all-linear" if config.targets == "all-linear" else list(config.names),
            layers_to_transform=list(range(count - config.layers, count)) if config.layers else None,
            use_rslora=config.rslora,
            use_dora=config.dora,
        ),
    )
    parameters = {name: x for name, x in model.named_parameters() if x.requires_grad}
    assert len(parameters) == len(values)
    with torch.no_grad():
        for name, parameter in parameters.items():
            ours = values[_name(name)]
            if "magnitude" in name:
                np.testing.assert_allclose(ours, parameter, rtol=bounds.drift(2 * 192))  # the length of a row
            parameter.copy_(torch.from_numpy(ours))
    decayed = [x for x in parameters.values() if x.ndim > 1]
    groups = [{"params": decayed, "weight_decay": 0.1}]
    groups += [{"params": [x for x in parameters.values() if x.ndim == 1], "weight_decay": 0.0}] if config.dora else []
    optimizer = torch.optim.AdamW(groups)
    losses, norms = [], []
    for step, batch in enumerate(batches(), 1):
        logits = model(torch.from_numpy(batch.tokens).long()).logits
        targets = torch.where(torch.from_numpy(batch.weights) > 0, torch.from_numpy(batch.targets).long(), -100)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(list(parameters.values()), 0.5)))
        for group in optimizer.param_groups:
            group["lr"] = SETTINGS.rates.rate(step)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses, norms


def _name(theirs: str) -> str:
    name = theirs.removeprefix("base_model.model.").replace(".default.weight", ".weight")
    return name.replace("lora_magnitude_vector.weight", "lora_magnitude_vector")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks transformers
@pytest.mark.parametrize("backend", ["torch", "mlx"])
@pytest.mark.parametrize("method", OURS)
def test_ten_steps_are_pefts(tiny_family: Callable[[str], Path], method: str, backend: str) -> None:
    ops = partita_backends.load(backend, dtype="float32")
    model, values = lora(ops, tiny_family("llama"), OURS[method])
    start = {name: np.array(ops.to_numpy(x)) for name, x in values.items()}
    trainer = Trainer(ops, model, values, SETTINGS, Fixed(batches()))
    steps: list[Any] = [event for event in trainer.run() if isinstance(event, Step)]
    losses, norms = theirs(tiny_family("llama"), OURS[method], start)
    error = bounds.loss(tiny_family("llama"), min(step.trained for step in steps))
    np.testing.assert_allclose([step.loss for step in steps], losses, rtol=error)
    np.testing.assert_allclose([step.grad_norm for step in steps], norms, rtol=bounds.gradients(tiny_family("llama")))
    assert abs(losses[-1] - losses[0]) > 0.05


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks transformers
@pytest.mark.parametrize("method", OURS)
def test_peft_loads_what_is_written(tiny_family: Callable[[str], Path], tmp_path: Path, method: str) -> None:
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    ops, folder = partita_backends.load("torch", dtype="float32"), tiny_family("llama")
    model, values = lora(ops, folder, OURS[method], spread=0.05)
    host = {name: ops.to_numpy(x) for name, x in values.items()}
    for _ in range(2):  # a second time it is replaced
        write_adapter(tmp_path / "adapter", host, OURS[method], str(folder), 4)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "adapter",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    tokens = np.random.default_rng(0).integers(0, 280, (1, 30)).astype(np.int32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens).long()).logits.numpy()
    decoder = model.bind(ops, values)
    cache = Cache(ops, plan(decoder.config, KVFormat.parse("32")))
    ours = ops.to_numpy(decoder(ops, ops.array(tokens), cache, every=True))
    bounds.assert_near(ours, expected, bounds.logits(folder))
