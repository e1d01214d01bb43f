"""A run in words: what is about to happen, the method, how the result is used. Computes nothing."""

from __future__ import annotations

import shlex
from pathlib import Path

from partita.adapters.lora import ALL_LINEAR
from partita.finetuning.prepare import Prepared
from partita.finetuning.results import MODEL
from partita.units import memory_size


def summary(prepared: Prepared) -> list[str]:
    """What is about to happen, in a few lines."""
    settings, ops = prepared.settings, prepared.ops
    model = settings.model if settings.from_scratch is None else f"random weights of {settings.from_scratch}"
    lines = [f"{model}: {millions(prepared.parameters)} weights, {ops.name} on {ops.device}, {ops.dtype}"]
    lines.append(f"{describe(prepared)}: {millions(prepared.trained)} values are trained, ")
    lines[-1] += f"{prepared.trained / max(prepared.parameters, 1):.2%} of the model's"
    counts = prepared.splits.train.statistics
    held = prepared.splits.valid
    shown = "none" if held is None else f"{held.statistics.documents:,}"
    lines.append(f"data: {counted(counts.documents, 'document')}, {counted(counts.tokens, 'token')}, ")
    lines[-1] += (
        f"{counts.trained:,} of them trained; {shown} for validation{', held out' if prepared.splits.held_out else ''}"
    )
    if counts.truncated:
        lost = counted(counts.lost, "token")
        lines.append(f"  {were(counts.truncated)} cut at --max-length {settings.max_length}: {lost} lost")
    if counts.skipped:
        lines.append(
            f"  {were(counts.skipped)} left out for prompts that alone fill --max-length {settings.max_length}"
        )
    lines += [f"  {note}" for note in prepared.splits.notes]
    rows = settings.batch_size * settings.accumulate
    lines.append(
        f"{counted(settings.steps or 0, 'step')} of {counted(rows, 'row')} of up to {settings.max_length} tokens, "
    )
    lines[-1] += f"learning rate {settings.learning_rate:g} ({settings.schedule}, {settings.warmup} of warm-up)"
    weights, rest, free = map(memory_size, (prepared.weights, prepared.rest.total, ops.memory().free))
    lines.append(f"memory: {weights} of weights, about {rest} to train them, {free} are free")
    return lines


def describe(prepared: Prepared) -> str:
    """The method in words: "LoRA, rank 16, alpha 32, on all linear layers"."""
    lora = prepared.lora
    if lora is None:
        return "all weights" if prepared.settings.from_scratch is None else "all weights, from random ones"
    name = "DoRA" if lora.dora else "rsLoRA" if lora.rslora else "LoRA"
    where = ", ".join(lora.names)
    if lora.targets == ALL_LINEAR:
        where = "all linear layers" + ("" if prepared.model.decoder.config.experts is None else " but MLPs and experts")
    last = "" if lora.layers is None else f" of the last {lora.layers} layers"
    return f"{name}, rank {lora.rank}, alpha {lora.alpha:g}, on {where}{last}"


def counted(count: int, word: str) -> str:
    """ "1 step", "1,000 steps"."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def were(count: int) -> str:
    return f"{count:,} {'was' if count == 1 else 'were'}"


def millions(count: int) -> str:
    if count >= 10**9:
        return f"{count / 10**9:.2f} billion"
    return f"{count / 10**6:.1f} million" if count >= 10**6 else f"{count:,}"


def resume_command(out: Path) -> str:
    return f"partita finetune --resume --out {shlex.quote(str(out))}"


def use_commands(prepared: Prepared, result: Path) -> list[str]:
    """How the result is used: told what it was trained with. GGUF files and folders alike."""
    settings = prepared.settings
    words = ["partita", "chat", str(result)]
    if result.name != MODEL or prepared.lora is not None:
        words[2:] = [settings.model, "--adapter", str(result)]
    words += [] if prepared.chats else ["--raw"]
    words += [word for text in settings.template_var for word in ("--template-var", text)]
    return [shlex.join(words)]
