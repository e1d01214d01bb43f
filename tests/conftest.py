"""Models for tests: a tiny one made here, and the default one, fetched once into the cache folder."""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Where cores are shared, a second thread costs more in waiting than it does in work. Read when a library is loaded, so
# this stands before the imports; child processes inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Triton's kernels run in its interpreter, on the CPU; with TRITON_INTERPRET=0 they are compiled, and need a GPU. Read
# when triton is imported, which other libraries may do.
os.environ.setdefault("TRITON_INTERPRET", "1")

import numpy as np
import pytest
from hypothesis import settings

# `make test` tries the same examples in every run, so that it passes or fails by what has changed; `make test-long`
# looks for others: it asks for the profile "search". How long an example takes says something of the machine alone.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None)
settings.load_profile("repeatable")

# No test reads or writes the history of whoever runs it; child processes inherit this, too.
_data = tempfile.TemporaryDirectory(prefix="partita-data-")
os.environ["PARTITA_DATA"] = os.path.join(_data.name, "data")
for name in ("MAKELEVEL", "MAKEFLAGS", "MFLAGS"):  # `make test` runs this: a make in a test is not a part of that one
    os.environ.pop(name, None)
# a shell starts background jobs with Ctrl-C ignored, nohup ignores hangups, and child processes would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

_usage: dict[str, tuple[float, ...]] = {}  # of each worker, in the process that started them


def usage() -> tuple[float, ...]:
    """CPU seconds and peak resident GB of this process, CPU seconds of its children and the largest one's GB."""
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return tuple(x for r in (own, children) for x in (r.ru_utime + r.ru_stime, r.ru_maxrss * unit / 1e9))


def pytest_collection_finish() -> None:
    """Tests and what they have imported stay to the end: no later collection of garbage looks at them again."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["usage"] = usage()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    _usage[node.gateway.id] = getattr(node, "workeroutput", {}).get("usage", ())


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: a third of the time a test waits for a process, a browser or a clock."""
    return (os.cpu_count() or 1) + 1


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What the suite cost: it is to stay below 24 minutes of CPU time and 3 GB a worker."""
    for name, found in (_usage or {"this process": usage()}).items():
        if found and not hasattr(terminalreporter.config, "workeroutput"):
            own, peak, children, largest = found
            terminalreporter.write_line(
                f"{name}: {own:.0f} s of CPU time, peak {peak:.1f} GB; its child processes {children:.0f} s, "
                f"the largest {largest:.1f} GB"
            )


TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WORDS = "the quick brown fox jumps over the lazy dog and then the other fox thinks that this is the end of the day"
HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, MLP = 64, 2, 4, 2, 32, 96


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama folder of random weights, the same in every run. Its greedy replies never end by themselves."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    vocab_size = write_tokenizer(folder)
    write_config(folder, vocab_size)
    write_weights(folder, vocab_size)
    return folder


@pytest.fixture(scope="session")
def tiny_family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny model by its name in tiny_models.NAMES, made once a session."""
    from . import tiny_models

    folder = tmp_path_factory.mktemp("families")
    return lambda name: tiny_models.write(name, folder)


@pytest.fixture(scope="session")
def default_model() -> Path:
    """The file of the default model. Required: a test that asks for it fails where it cannot be fetched."""
    from partita.sources.resolve import resolve

    return resolve(None)


def write_tokenizer(folder: Path, texts: Sequence[str] = (WORDS,), size: int = 300) -> int:
    """Byte-level BPE with a few merges, learned from texts, and a chat template; the size of its vocabulary."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in SPECIALS])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": None, "eos_token": "<|im_end|>", "add_bos_token": False, "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer.get_vocab_size()


def write_config(folder: Path, vocab_size: int, positions: int = 512) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "intermediate_size": MLP,
        "vocab_size": vocab_size,
        "max_position_embeddings": positions,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "eos_token_id": vocab_size - 1,
    }
    (folder / "config.json").write_text(json.dumps(config))


def write_weights(folder: Path, vocab_size: int) -> None:
    from safetensors.numpy import save_file

    random = np.random.default_rng(20)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return random.normal(0, columns**-0.5, (rows, columns)).astype(np.float32)

    head = matrix(vocab_size, HIDDEN) * 4
    head[-len(SPECIALS) :] = 0  # control tokens are never the most likely
    tensors = {
        "model.embed_tokens.weight": matrix(vocab_size, HIDDEN),
        "model.norm.weight": np.ones(HIDDEN, np.float32),
        "lm_head.weight": head,
    }
    for i in range(LAYERS):
        prefix = f"model.layers.{i}"
        tensors |= {
            f"{prefix}.input_layernorm.weight": np.ones(HIDDEN, np.float32),
            f"{prefix}.post_attention_layernorm.weight": np.ones(HIDDEN, np.float32),
            f"{prefix}.self_attn.q_proj.weight": matrix(HEADS * HEAD_DIM, HIDDEN),
            f"{prefix}.self_attn.k_proj.weight": matrix(KV_HEADS * HEAD_DIM, HIDDEN),
            f"{prefix}.self_attn.v_proj.weight": matrix(KV_HEADS * HEAD_DIM, HIDDEN),
            f"{prefix}.self_attn.o_proj.weight": matrix(HIDDEN, HEADS * HEAD_DIM),
            f"{prefix}.mlp.gate_proj.weight": matrix(MLP, HIDDEN),
            f"{prefix}.mlp.up_proj.weight": matrix(MLP, HIDDEN),
            f"{prefix}.mlp.down_proj.weight": matrix(HIDDEN, MLP),
        }
    save_file(tensors, folder / "model.safetensors")
