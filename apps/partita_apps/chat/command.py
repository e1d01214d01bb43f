"""`partita chat`: which way of talking is meant, from the arguments and from what standard input is."""

from __future__ import annotations

import sys
from typing import Any

import click

from partita.errors import DataError

from ..options import chat_cache_options, load_model, model_options, sampling_options


@click.command("chat")
@click.argument("model", required=False)
@click.option("-p", "--prompt", default=None, metavar="TEXT", help="Answer TEXT and leave; - reads standard input.")
@model_options
@chat_cache_options
@sampling_options
def chat(model: str | None, prompt: str | None, **options: Any) -> None:
    lm = load_model(model, **{k: options[k] for k in ("backend", "device", "dtype", "threads")})
    if prompt is None:
        raise DataError("no prompt")
    for piece in lm.session(context=options["context"], kv=options["kv"]).generate(
        lm.encode(prompt), max_tokens=options["max_tokens"]
    ):
        sys.stdout.write(piece.text)
        sys.stdout.flush()
    sys.stdout.write("\n")
