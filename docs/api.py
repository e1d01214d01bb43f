"""docs/api.md out of the signatures and docstrings of what `partita` names. The text above them is kept here.

    python docs/api.py          writes the file

A test compares the file with what this makes.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any, get_type_hints, is_typeddict

import partita
from partita.finetuning.outcome import Sample, TrainingReport
from partita.finetuning.settings import MoreSettings
from partita.text.reply.called import ToolCall
from partita_convert.report import Report

PLACE = Path(__file__).parent / "api.md"
FUNCTIONS = ("load", "generate", "chat", "logits", "finetune", "convert")
CLASSES = ("LanguageModel", "Session", "Cache", "Sampling", "Piece", "PartitaError")
TAKEN = (MoreSettings,)
RETURNED = (ToolCall, TrainingReport, Sample, Report)
HEAD = """\
# The Python API

Written by `docs/api.py` from the docstrings. A longer walk through it is [examples/tour.py](../examples/tour.py).

A conversation, of which each turn reads only what is new:

```python
import partita

model = partita.load()
session = model.session(context=2048)
messages = [{"role": "system", "content": "Answer in one short sentence."}]
for question in ("What is the capital of France?", "And of Italy?"):
    messages.append({"role": "user", "content": question})
    reply = ""
    for piece in partita.chat(model, messages, session=session, max_tokens=40, seed=0):
        print(piece.text, end="", flush=True)
        reply += piece.text
    print()
    messages.append({"role": "assistant", "content": reply})
```

An adapter out of a few records, and its use:

```python
import partita

records = [
    {"messages": [{"role": "user", "content": f"Count to {n}."}, {"role": "assistant", "content": "One, two, three!"}]}
    for n in range(3, 15)
]
report = partita.finetune("model", records, steps=5, rank=4, max_length=64, valid_fraction=0)
print(report.train_loss[0], report.train_loss[-1], report.adapter)
model = partita.load("model", adapter=report.adapter)
for piece in partita.generate(model, "Count to 20.", max_tokens=12):
    print(piece.text, end="")
print()
```
"""


def document() -> str:
    lines = [HEAD, *_prose(inspect.cleandoc(partita.__doc__ or "")), "## Functions", ""]
    for name in FUNCTIONS:
        lines += _function(f"partita.{name}", getattr(partita, name))
    lines += ["## Classes", ""]
    for name in CLASSES:
        lines += _class(f"partita.{name}", getattr(partita, name))
    lines += ["## More keywords", ""]
    for kind in TAKEN:
        lines += _class(kind.__name__, kind)
    lines += ["## What comes back", ""]
    for kind in RETURNED:
        lines += _class(kind.__name__, kind)
    return "\n".join(lines).rstrip() + "\n"


def _prose(text: str) -> Iterator[str]:
    """A docstring without its indented example, which stands above."""
    yield "\n\n".join(part for part in text.split("\n\n") if not part.startswith("    "))
    yield ""


def _function(name: str, function: FunctionType, level: str = "###") -> list[str]:
    parameters = list(inspect.signature(function).parameters.values())
    if parameters and parameters[0].name in ("self", "cls"):
        del parameters[0]
    returns = function.__annotations__.get("return")
    last = ")" if returns in (None, "None") else f") -> {returns}"
    body = _listed(name, parameters, last)
    return [f"{level} `{name}`", "", f"```text\n{body}\n```", "", inspect.getdoc(function) or "", ""]


def _listed(name: str, parameters: list[inspect.Parameter], last: str) -> str:
    """A signature, on one line where it fits."""
    shown, starred = [], False
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            shown.append("*")
            starred = True
        star = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        starred |= star == "*"
        text = f"{star}{parameter.name}"
        if parameter.annotation is not parameter.empty:
            text += f": {parameter.annotation}"
        if parameter.default is not parameter.empty:
            text += f" = {_default(parameter.default)}"
        shown.append(text)
    line = f"{name}({', '.join(shown)}{last}"
    return line if len(line) <= 100 else f"{name}(\n" + "".join(f"    {text},\n" for text in shown) + last


def _default(value: object) -> str:
    return "…" if type(value).__repr__ is object.__repr__ or "factory" in repr(value) else repr(value)


def _class(name: str, kind: type) -> list[str]:
    lines = [f"### `{name}`", ""]
    if "__dataclass_fields__" in vars(kind):
        lines += [f"```text\n{_listed(name, list(inspect.signature(kind).parameters.values()), ')')}\n```", ""]
    if is_typeddict(kind):
        keys = get_type_hints(kind).items()
        lines += ["```text", *(f"{key}: {hint.__name__ if isinstance(hint, type) else hint}" for key, hint in keys)]
        lines = [line.replace("typing.", "") for line in [*lines, "```", ""]]
    lines += [inspect.getdoc(kind) or "", ""]
    for member, value in _members(kind).items():
        if member.startswith("_"):
            continue
        if isinstance(value, FunctionType) and inspect.getdoc(value):
            lines += _function(f"{kind.__name__}.{member}", value, "####")
        elif isinstance(value, property) and inspect.getdoc(value):
            lines += [f"#### `{kind.__name__}.{member}`", "", inspect.getdoc(value) or "", ""]
    return lines


def _members(kind: type) -> dict[str, Any]:
    """Its own, and behind them those of our classes that it is made of."""
    found: dict[str, Any] = {}
    for base in inspect.getmro(kind):
        if base.__module__.startswith("partita"):
            found |= {name: value for name, value in vars(base).items() if name not in found}
    return found


if __name__ == "__main__":
    PLACE.write_text(document(), encoding="utf-8")
    print(PLACE, file=sys.stderr)
