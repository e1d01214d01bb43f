"""docs/models.md out of the tables of families, architectures and reply formats, and of what the tests judge.

    python docs/models.py          writes the file

A test compares the file with what this makes.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests import gguf_models, tiny_models  # noqa: E402
from tests.interop.test_mlx_lm import NAMES as READ_BY_MLX_LM  # noqa: E402

from partita.checkpoint.gguf.architectures import ARCHITECTURES  # noqa: E402
from partita.model.families.parse import FAMILIES  # noqa: E402
from partita.model.families.wrappers import WRAPPERS  # noqa: E402
from partita.text.reply.formats import BLOCKS, DIALECTS, HARMONY, NAMED, RECIPIENTS  # noqa: E402
from partita_apps.cli import cli  # noqa: E402

PLACE = Path(__file__).parent / "models.md"
WORDS = {"": "", NAMED: "a line with the tool's name"}
SAME_DECODER = {"ministral": "mistral"}
"""Families that are judged by the models of another, whose decoder they have."""
FROZEN = frozenset(
    {"qwen3_moe", "mellum", "gpt_oss", "granite_swa", "qwen3_5_moe_text", "qwen3_next", "lfm2_moe", "laguna"}
)
"""Families whose experts or sink logits are not trained: `training.initialize.untrained` names them."""


@dataclass(frozen=True)
class Known:
    """models: their names. sizes: those that people run. thoughts, calls: how replies begin them, as in
    `partita.text.reply.formats`; "": not at all."""

    models: str
    sizes: str
    thoughts: str = ""
    calls: str = ""


KNOWN = {
    "llama": Known("Llama 2 and 3.x, SmolLM2, TinyLlama", "135M to 70B", "", "<|python_tag|>"),
    "mistral": Known("Mistral, Mistral Nemo and Small", "7B to 24B", "[THINK]", "[TOOL_CALLS]"),
    "ministral": Known("Ministral", "8B", "", "[TOOL_CALLS]"),
    "ministral3": Known("Ministral 3, Devstral 2", "3B to 24B", "[THINK]", "[TOOL_CALLS]"),
    "smollm3": Known("SmolLM3", "3B", "<think>", "<tool_call>"),
    "qwen2": Known("Qwen2, Qwen2.5, DeepSeek's distillates", "0.5B to 72B", "<think>", "<tool_call>"),
    "qwen3": Known("Qwen3", "0.6B to 32B", "<think>", "<tool_call>"),
    "qwen3_moe": Known("Qwen3-30B-A3B, Qwen3-Coder", "30B to 235B", "<think>", "<tool_call>"),
    "gemma2": Known("Gemma 2", "2B to 27B"),
    "gemma3_text": Known("Gemma 3", "270M to 27B"),
    "gemma4_text": Known("Gemma 4", "E2B to 31B", "<|channel>", "<|tool_call>"),
    "phi3": Known("Phi-3, 3.5, 4, 4-mini", "4B to 14B", "<think>", "<|tool_call|>"),
    "olmo2": Known("OLMo 2", "1B to 32B"),
    "olmo3": Known("OLMo 3", "7B, 32B", "<think>", "<function_calls>"),
    "granite": Known("Granite 3.x", "2B, 8B", "<think>", "<|tool_call|>"),
    "granite_swa": Known("Granite SWA", "2B"),
    "exaone4": Known("EXAONE 4", "1.2B, 32B", "<think>", "<tool_call>"),
    "seed_oss": Known("Seed-OSS", "36B", "<seed:think>", "<seed:tool_call>"),
    "glm4": Known("GLM-4-0414, GLM-Z1", "9B, 32B", "<think>", NAMED),
    "ernie4_5": Known("ERNIE 4.5", "0.3B", "<think>", "<tool_call>"),
    "hunyuan_v1_dense": Known("Hunyuan", "0.5B to 7B", "<think>", "<tool_call>"),
    "cohere2": Known("Command R7B, Command A", "7B, 111B", "<|START_THINKING|>", "<|START_ACTION|>"),
    "mellum": Known("Mellum 2", "12B", "<think>", "<tool_call>"),
    "gpt_oss": Known("gpt-oss", "20B, 120B", HARMONY.thought.begin, HARMONY.call.begin),
    "laguna": Known("Laguna XS", "33B", "<think>", "<tool_call>"),
    "muse_glimmer_text": Known("Muse Glimmer", "30B", RECIPIENTS.thought.begin, RECIPIENTS.call.begin),
    "qwen3_5_text": Known("Qwen3.5, 3.6, 3.8", "0.8B to 27B", "<think>", "<tool_call>"),
    "qwen3_5_moe_text": Known("Qwen3.5-35B-A3B, Qwen3.6-35B-A3B", "35B to 397B", "<think>", "<tool_call>"),
    "qwen3_next": Known("Qwen3-Next, Qwen3-Coder-Next", "80B", "<think>", "<tool_call>"),
    "olmo_hybrid": Known("Olmo Hybrid", "7B"),
    "lfm2": Known("LFM2, LFM2.5", "0.35B to 2.6B", "<think>", "<|tool_call_start|>"),
    "lfm2_moe": Known("LFM2-8B-A1B", "8B, 24B", "<think>", "<|tool_call_start|>"),
    "lfm3": Known("LFM3", "1.7B", "<think>", "<|tool_call_start|>"),
}
SUGGEST = "partita models suggest --for code --memory 16GiB"
SUGGESTED = """\
## What fits this machine

`partita models suggest` names public models that fit the memory that is free: the best for chat, for code and for
tools, then the others by size. `--for`, `--context` and `--memory` ask for one use, more tokens, another machine.
`--json` gives every number.

```console
$ {command}
{output}
```

"memory" is what a model takes here: its weights as they lie in memory, the cache of that context at 16 bits, and
256 MiB that are kept back. Where several leave a quarter of the memory free, the one with most parameters stands first.
Nothing is said of speed, which `partita bench` measures. A folder is larger than what is loaded of it where the model
sees or hears (Gemma 4, Qwen3.5, Ministral 3, Muse Glimmer), or where its head is in it twice (Gemma 3). gpt-oss is
counted at 6 bits a weight, which its MXFP4 takes on GPUs of torch; on their CPUs it takes 5.5, and on MLX the 4.25 of
the file.

The list comes with the package, with the date that it prints; nothing is looked up. Its sizes are judged against the
models' published shapes, by the code that loads them. "tried" says whether partita's own tests load those weights: of
the list, they load one.
"""
IN_PART = {"gemma4_text": "without experts"}
"""Families of which some forms have experts, and what is trained of them."""
HEAD = """\
# Models

Written by `docs/models.py` from the tables that the code reads, and from what the tests judge. What differs between the
families is in [the design](design.md#the-model); how replies are told apart is [there](design.md#replies) too.

Every family is read from a folder of the Hub and from MLX's, and written to both. Every one chats, keeps sessions and
takes LoRA adapters on MLX and on torch; "every weight" says that all of them can be trained (but the number that
Gemma 4 multiplies each layer by, as elsewhere). No
published checkpoint of these sizes but SmolLM2-135M and Gemma 3 270M was at hand: the others were judged on tiny random
models with the family's own config, in float32, by transformers on every backend (at once, in chunks, token by token),
and by the programs named here.

| model_type | models | sizes | GGUF, in and out | every weight | thoughts | tool calls | judged also by |
|---|---|---|---|---|---|---|---|
"""


def document() -> str:
    rows = "\n".join(_row(kind) for kind in KNOWN)
    wrappers = "\n".join(
        f"| `{kind}` | {', '.join(f'`{text}`' for text in WRAPPERS[kind].texts.values())} |" for kind in WRAPPERS
    )
    return (
        f"{HEAD}{rows}\n\n"
        "A model whose template has no tools is told of them in its prompt by the server, and its calls are enforced\n"
        "in a form that is read. The templates of Laguna and Muse Glimmer were not at hand: their forms are those of\n"
        "other programs.\n\n"
        "## Models that see or hear\n\n"
        "Their text decoder is played alone, and a line names what is left out. Each was judged by transformers'\n"
        "whole model, which was given text.\n\n"
        f"| model_type | around |\n|---|---|\n{wrappers}\n\n"
        f"{SUGGESTED.format(command=SUGGEST, output=_printed(SUGGEST))}"
    )


def _printed(command: str) -> str:
    """What a command prints into a pipe, without the blanks that end lines."""
    result = CliRunner().invoke(cli, shlex.split(command)[1:], catch_exceptions=False)
    return "\n".join(line.rstrip() for line in result.stdout.rstrip().splitlines())


def _row(kind: str) -> str:
    known = KNOWN[kind]
    models = {**tiny_models.FAMILIES, **gguf_models.OWN}
    made = [name for name, values in models.items() if values["model_type"] == kind]
    judges = [
        *(["mlx-lm"] if set(made) & set(READ_BY_MLX_LM) else []),
        *(["llama.cpp"] if set(made) & set(gguf_models.NAMES) else []),
    ]
    cells = (
        f"`{kind}`",
        known.models,
        known.sizes,
        _yes(any(kind in row.written for row in ARCHITECTURES.values())),
        IN_PART.get(kind, _yes(kind not in FROZEN)),
        _marker(known.thoughts),
        _marker(known.calls),
        ", ".join(judges) if made else f"as `{SAME_DECODER[kind]}`",
    )
    return f"| {' | '.join(cells)} |"


def _yes(said: bool) -> str:
    return "yes" if said else "no"


def _marker(marker: str) -> str:
    if marker in WORDS:
        return WORDS[marker]
    return f"`{marker.strip().replace('|', chr(92) + '|')}`"


def recognised(kind: str) -> set[str]:
    """The markers that replies may begin a part of this kind with."""
    blocks = [*BLOCKS, *(block for dialect in DIALECTS for block in (dialect.thought, dialect.call))]
    return {block.begin for block in blocks if block.kind == kind} | {""}


if __name__ == "__main__":
    missing = FAMILIES.keys() - KNOWN.keys()
    if missing:
        sys.exit(f"docs/models.py: no row for {', '.join(sorted(missing))}")
    PLACE.write_text(document(), encoding="utf-8")
    print(PLACE)
