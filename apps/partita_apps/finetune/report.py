"""report.md and loss.png: what was trained on what, how it went, and what the model says before and after.

For people; programs read metrics.jsonl. Invariants: every number in it comes from the run; what the data hold is shown
as text, and does nothing to a terminal.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from partita import __version__
from partita.finetuning.results import write_text
from partita.finetuning.settings import OF_ADAPTERS
from partita.printable import visible
from partita.units import duration, memory_size

from ..messages import shown
from .line import Smoothed, loss_memory
from .words import counted, describe, resume_command, use_commands

if TYPE_CHECKING:
    from partita.finetuning.outcome import Outcome
    from partita.finetuning.prepare import Prepared

PLOT, REPORT = "loss.png", "report.md"
_MOST_ROWS = 12
_COUNTS = {
    "records": "records",
    "documents": "documents",
    "tokens": "tokens",
    "trained": "tokens with a loss",
    "truncated": "cut at the longest length",
    "lost": "tokens cut off",
    "skipped": "left out (their prompts alone fill the length)",
    "split": "documents beyond one a record (the template rewrites earlier turns)",
    "unopened": "turns without the text that opens a reply",
}


def plot(folder: Path, train: list[list[Any]], valid: list[list[Any]], total: int) -> bool:
    """Draw loss.png; False where there is nothing to draw it with, or nothing to draw. total: steps of the run."""
    if importlib.util.find_spec("matplotlib") is None or not train:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps, losses = zip(*train, strict=True)
    axes.plot(steps, losses, color="#9db7d5", linewidth=0.8, label="training, each step")
    axes.plot(steps, _smoothed(losses, total), color="#1f4e8c", linewidth=1.8, label="training, smoothed")
    if valid:
        axes.plot(*zip(*valid, strict=True), color="#c4501b", marker="o", markersize=4, label="validation")
    axes.set_xlabel("step")
    axes.set_ylabel("loss of a token, nats")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    temporary = folder / f".{PLOT}.new.png"
    try:
        figure.savefig(temporary, dpi=150)
        temporary.replace(folder / PLOT)
    except OSError:  # a picture is not worth a run
        temporary.unlink(missing_ok=True)
        return False
    return True


def _smoothed(values: tuple[float, ...], total: int) -> list[float]:
    """What the progress line showed at each step."""
    mean, found = Smoothed(loss_memory(total)), []
    for value in values:
        mean.add(value)
        found.append(mean.value)
    return found


def write_report(folder: Path, prepared: Prepared, outcome: Outcome, *, drawn: bool) -> None:
    """report.md. drawn: whether `plot` left a picture. Raises DataError where it cannot be written."""
    parts = [
        f"# {describe(prepared)}: {prepared.settings.model}",
        _how_it_ended(prepared, outcome),
        "```\n" + "\n".join(_commands(prepared, outcome, folder)) + "\n```",
        "## Loss",
        *([f"![Loss by step]({PLOT})"] if drawn else []),
        _losses(outcome),
        *_samples(outcome),
        "## Data",
        _data(prepared),
        "## Settings",
        _settings(prepared, outcome),
        f"Written by partita {__version__}. Every step: [metrics.jsonl](metrics.jsonl).",
    ]
    write_text(folder / REPORT, visible("\n\n".join(parts) + "\n"))


def _commands(prepared: Prepared, outcome: Outcome, folder: Path) -> list[str]:
    """How to go on with a run that was stopped, and how to use what it left."""
    if outcome.reason != "stopped":
        return use_commands(prepared, outcome.result)
    return [resume_command(folder), *(use_commands(prepared, outcome.result) if prepared.lora is not None else [])]


def _how_it_ended(prepared: Prepared, outcome: Outcome) -> str:
    total = counted(prepared.settings.steps or 0, "step")
    ends = {
        "steps": f"Trained for {counted(outcome.step, 'step')}.",
        "patience": f"Stopped after {outcome.step} of {total}: no better validation loss came.",
    }
    valid = outcome.column("valid_loss")
    stopped = f"Stopped by hand after {outcome.step} of {total}; it can be gone on with."
    said = [ends.get(outcome.reason, stopped)]
    if len(valid) > 1:
        first, last = valid[0][1], valid[-1][1]
        said.append(f"Validation loss {first:.4f} before, {last:.4f} after ({last / first - 1:+.1%}).")
    if outcome.best is not None:
        said.append(f"The result is that of step {outcome.best}, where it was lowest.")
    if outcome.test is not None:
        said.append(f"Loss of the test data, measured once with the result: {outcome.test:.4f}.")
    seconds = sum(row[1] for row in outcome.column("seconds"))
    speed = outcome.tokens_per_second
    said.append(
        f"{duration(seconds)} of training, {speed or 0:,.0f} tokens a second, {memory_size(outcome.peak)} at most."
    )
    return " ".join(said)


def _losses(outcome: Outcome) -> str:
    """A table of evaluations, each with the mean training loss since the one before."""
    train, valid = outcome.column("train_loss"), outcome.column("valid_loss")
    marks = [step for step, _ in valid] or _marks([step for step, _ in train])
    known, rows, before = dict(map(tuple, valid)), [], 0
    for step in _thinned(marks):
        since = [loss for at, loss in train if before < at <= step]
        mean = f"{sum(since) / len(since):.4f}" if since else ""
        rows.append((step, mean, f"{known[step]:.4f}" if step in known else ""))
        before = step
    return _table(("step", "training, mean since the row above", "validation"), rows)


def _marks(steps: list[int]) -> list[int]:
    return steps[:: max(len(steps) // 10, 1)] if steps else []


def _thinned(marks: list[int]) -> list[int]:
    """The first, the last, and some between."""
    if len(marks) <= _MOST_ROWS:
        return marks
    every = -(-len(marks) // _MOST_ROWS)
    return sorted({*marks[::every], marks[-1]})


def _samples(outcome: Outcome) -> list[str]:
    if not outcome.asked:
        return []
    parts = ["## Samples", "The most likely continuation of each prompt, before and after training."]
    for i, prompt in enumerate(outcome.asked):
        parts.append(f"**Prompt {i + 1}**\n\n{_quoted(prompt.text)}")
        for title, replies in (("before", outcome.before), ("after", outcome.after)):
            if prompt.text in replies:
                parts.append(f"*{title}*\n\n{_quoted(replies[prompt.text])}")
        if prompt.expected is not None:
            parts.append(f"*in the data*\n\n{_quoted(prompt.expected)}")
    return parts


def _quoted(text: str) -> str:
    """A block that no text can end."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text}\n{fence}"


def _data(prepared: Prepared) -> str:
    found = prepared.splits.statistics()
    rows = [(words, *(f"{found[split][name]:,}" for split in found)) for name, words in _COUNTS.items()]
    rows = [row for row in rows if row[0] in ("records", "documents", "tokens") or any(cell != "0" for cell in row[1:])]
    held = "\n\nThe validation records were held out of the training data." if prepared.splits.held_out else ""
    notes = "\n\n" + _quoted("\n".join(map(shown, prepared.splits.notes))) if prepared.splits.notes else ""
    return f"`{prepared.settings.data}`\n\n{_table((' ', *found), rows)}{held}{notes}"


def _settings(prepared: Prepared, outcome: Outcome) -> str:
    ops, trained, settings = prepared.ops, prepared.trained, prepared.settings
    rows: list[tuple[Any, ...]] = [
        ("trained values", f"{trained:,} of {prepared.parameters:,} ({trained / max(prepared.parameters, 1):.2%})"),
        ("device", f"{ops.name} on {ops.device}, {ops.dtype}"),
        ("weights in memory", memory_size(prepared.weights)),
        ("estimated beside them", memory_size(prepared.rest.total)),
        ("peak of the process" if ops.device == "cpu" else "peak on the device", memory_size(outcome.peak)),
    ]
    hidden: tuple[str, ...] = ("model", "data", "sample", "backend", "device", "dtype", "epochs")
    hidden += OF_ADAPTERS if prepared.lora is None else ()
    said = settings.document()
    said["template_var"] = ", ".join(f"`{text}`" for text in settings.template_var) or None
    rows += [(f"`{name.replace('_', '-')}`", value) for name, value in said.items() if name not in hidden]
    return _table(("", ""), [row for row in rows if row[1] is not None])


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
