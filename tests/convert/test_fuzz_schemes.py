"""Every way of storing weights by `quant_method`, damaged in its tensors and in config.json: read whole
or refused with one line."""

from __future__ import annotations

import copy
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from . import fuzz_corpus, fuzz_schemes
from .fuzz_exercise import exercise

COUNT = 250
ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    3,
    31,
    2**31,
    2**63,
    2**70,
    0.5,
    1e300,
    float("nan"),
    "",
    "x",
    [],
    {},
    [[]],
    [0],
]
KINDS = [np.int8, np.uint8, np.int32, np.int64, np.float16, np.float32, np.bool_]


def other_value(value: Any, rng: random.Random) -> Any:
    """A JSON value with one of its nodes replaced or gone."""
    value = copy.deepcopy(value)
    node = value
    while True:
        key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        if isinstance(node[key], dict | list) and node[key] and rng.random() < 0.8:
            node = node[key]
        elif rng.random() < 0.2:
            del node[key]
            return value
        else:
            node[key] = copy.deepcopy(rng.choice(ODD))
            return value


def other_tensor(tensors: dict[str, np.ndarray], rng: random.Random) -> None:
    """One tensor gone, of another shape or dtype, or with other numbers."""
    name = rng.choice(sorted(tensors))
    value = tensors[name]
    match rng.randrange(6):
        case 0:
            del tensors[name]
        case 1:
            shape = [rng.choice([size, size, 0, 1, size + 1, size * 2]) for size in value.shape]
            tensors[name] = np.resize(value, shape + [2] * (rng.random() < 0.2))
        case 2:
            with np.errstate(all="ignore"):
                tensors[name] = value.astype(rng.choice(KINDS))
        case 3:
            tensors[name] = value.reshape(-1) if rng.random() < 0.5 else np.ascontiguousarray(value.T)
        case 4:
            raw = np.frombuffer(value.tobytes(), np.uint8).copy()
            for _ in range(4):
                raw[rng.randrange(len(raw)) if len(raw) else slice(0)] = rng.randrange(256)
            tensors[name] = raw.view(value.dtype).reshape(value.shape)
        case _:
            if name.endswith(("__nf4", "__fp4")):
                state = other_value(json.loads(value.tobytes()), rng)
                tensors[name] = np.frombuffer(json.dumps(state).encode(), np.uint8)
            else:
                tensors[rng.choice(sorted(tensors))] = value


@pytest.mark.parametrize("form", fuzz_schemes.FORMS)
def test_damaged_schemes_are_read_whole_or_refused(tmp_path: Path, form: str) -> None:
    tensors, block = fuzz_schemes.FORMS[form]()
    outcomes: Counter[str] = Counter()
    for number in range(COUNT):
        rng = random.Random(f"{form} {number}")
        own, config = dict(tensors), {"quantization_config": block}
        for _ in range(rng.randint(1, 2) if number else 0):
            if config and rng.random() < 0.35:
                config = other_value(config, rng)
            elif own:
                other_tensor(own, rng)
        (tmp_path / "config.json").write_text(json.dumps(fuzz_corpus.CONFIG | config))
        (tmp_path / "model.safetensors").write_bytes(save(own))
        (tmp_path / "tokenizer.json").write_text(json.dumps(fuzz_corpus.tokenizer_json()))
        outcome = exercise(tmp_path)
        assert number or outcome == "opened"
        outcomes[outcome] += 1
    assert outcomes["opened"] > COUNT / 10, outcomes
    assert outcomes["CheckpointError"] > COUNT / 10, outcomes
