"""`partita chat`: which way of talking is meant, from the arguments and from what standard input is."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from partita.errors import DataError
from partita.files.paths import own
from partita.files.texts import read_text

from ..aliases import model_option, option, shifted
from ..completion import models
from ..options import (
    adapter_as_model,
    adapter_options,
    chat_cache_options,
    load_model,
    model_options,
    other_base,
    sampling_options,
    tell,
)
from ..paths import OwnPath
from .begin_history import Kept, begin_history, chosen

if TYPE_CHECKING:
    from partita.inference.speculative import Drafter
    from partita.language_model import LanguageModel

    from ..conversation.conversation import Conversation
    from ..conversation.local import CacheOptions, LocalConversation
    from ..conversation.session_file import SessionFile

MODEL_OPTIONS = ("backend", "device", "dtype", "threads")
CACHE_OPTIONS = ("context", "sinks", "kv")


@click.command("chat")
@click.argument("model", required=False, shell_complete=models)
@click.option("-p", "--prompt", default=None, metavar="TEXT", help="Answer TEXT and leave; - reads standard input.")
@click.option(
    "-f",
    "--file",
    "prompt_file",
    type=OwnPath(),
    default=None,
    metavar="FILE",
    help="Answer the text of FILE (UTF-8) and leave.",
)
@click.option("--raw", is_flag=True, help="Leave the chat template out: complete plain text.")
@option(
    "--system",
    also=("--system-prompt",),
    default=None,
    metavar="TEXT",
    help="Instructions that come before the conversation.",
)
@click.option(
    "--template-var",
    multiple=True,
    metavar="NAME=VALUE",
    help="Tell the chat template more, as JSON or text: enable_thinking=false, reasoning_effort=high.",
)
@click.option("--thoughts", default=None, metavar="HOW", help="On a terminal: show, fold or hide.  [default: show]")
@click.option("--plain", is_flag=True, default=None, help="Show Markdown as the model wrote it, without styles.")
@click.option("--stats", is_flag=True, default=None, help="Show the prompt's tokens/s and the peak of memory, too.")
@click.option("--trace", is_flag=True, help="A row for every token: probability, what else could have come, the cache.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output; needs one prompt.")
@click.option(
    "--session",
    type=OwnPath(),
    default=None,
    metavar="FILE",
    help="Go on with the conversation in FILE, or begin it there; saved after every reply.",
)
@click.option("--continue", "go_on", is_flag=True, help="Go on with the latest chat of the history.")
@click.option("--no-history", is_flag=True, help="Keep nothing of what is said.")
@click.option(
    "--server",
    default=None,
    metavar="URL",
    help="Talk with a model of a running server (`partita serve`); MODEL is a name that it serves.",
)
@click.option("--draft", default=None, metavar="MODEL", help="A smaller model drafts: the same text in less time.")
@click.option("--lookup", is_flag=True, help="Draft what followed before; for replies that repeat their prompt.")
@adapter_options
@sampling_options
@chat_cache_options
@model_option
@model_options
def chat(
    model: str | None, prompt: str | None, raw: bool, trace: bool, as_json: bool, named: str | None, **options: Any
) -> None:
    """Talk with MODEL in the terminal, or answer one prompt.

    MODEL is a folder, a .gguf file, hf:owner/name (owner/name will do), pypi:distribution==version, or the short name
    of a model that is here (`partita models list`); without it, the default model.

    Text piped into standard input is the prompt; with -p TEXT standard input is left alone. `partita run MODEL TEXT`
    reads both.
    """
    (model,) = shifted(named, model)
    if options["server"] is None:
        refuse_question(model)
    text = given_prompt(prompt, options["prompt_file"], as_json)
    if text is not None and not text.strip():
        raise DataError("the prompt is empty: give some text")
    kept = begin_history(options, raw=raw, once=text is not None)
    if options["server"] is not None:
        from .served import begin_there

        conversation = begin_there(model, raw, text is not None, options, kept)
        talk(conversation, text, trace, as_json)
        return
    from ..conversation.saved import held

    file = options["session"]
    with nullcontext() if file is None else held(file):
        conversation, session_file = begin(model, raw, text is not None, options, kept)
        try:
            talk(conversation, text, trace, as_json, session_file.save)
        finally:  # whatever ended it, Ctrl-C and signals too
            session_file.save()


def talk(
    conversation: Conversation,
    text: str | None,
    trace: bool,
    as_json: bool,
    save: Callable[[], None] = lambda: None,
) -> None:
    """Answer the text, or converse. save(): keeps the conversation where it is kept."""
    if text is not None:
        from .once import answer

        answer(conversation, text, trace=trace, as_json=as_json)
    else:
        from ..conversation.record import record_of
        from .interactive import converse

        try:
            converse(conversation, save, trace=trace)
        finally:
            record = record_of(conversation)
            if record is not None:
                record.close()


@click.pass_context
def _run(
    ctx: click.Context, model: str | None, words: tuple[str, ...], prompt: str | None, named: str | None, **options: Any
) -> None:
    if named is not None:  # the first argument is then a word of the prompt
        model, words = named, words if model is None else (model, *words)
    if words and prompt is not None:
        raise click.UsageError("prompt given twice, as arguments and as --prompt: leave one of them out", ctx)
    if words:
        prompt = with_input(" ".join(words))
    ctx.invoke(chat, model=model, named=None, prompt=prompt, **options)


def with_input(prompt: str) -> str:
    """A prompt, and after an empty line the text that is piped into standard input, if there is any."""
    if prompt == "-" or sys.stdin.isatty():
        return prompt
    piped = read_input()
    return "\n\n".join(text for text in (prompt, piped) if text and text.strip())


run_command = click.Command(
    "run",
    params=[chat.params[0], click.Argument(["words"], nargs=-1, metavar="[PROMPT]"), *chat.params[1:]],
    callback=_run,
    help="`partita chat` under the name that other tools have: talk with MODEL, or answer PROMPT, one word or several. "
    "Text piped into standard input is the prompt, or follows PROMPT after an empty line; -p TEXT leaves it alone.",
)


def refuse_question(model: str | None) -> None:
    """DataError for a text in MODEL's place that reads like something to say: several words, or one that is no path."""
    if model is None or os.path.lexists(own(model)):
        return
    if any(letter.isspace() for letter in model.strip()) or model.strip().isalpha():
        from partita.sources.resolve import full_name, suggestion

        if full_name(model) != model:  # a short name
            return
        raise DataError(
            f"{model!r} was taken for MODEL, and no model is called so{suggestion(model)}: to ask the default model, "
            "partita chat -p TEXT; `partita models list` shows the models that are here"
        )


def given_prompt(prompt: str | None, file: Path | None, as_json: bool) -> str | None:
    """The one prompt to answer, or None for a conversation in the terminal."""
    if file is not None:
        if prompt is not None:
            raise DataError("prompt given twice, as --prompt and as --file: leave one of them out")
        return read_text(file)
    if prompt is not None and prompt != "-":
        return prompt
    if prompt == "-" or not sys.stdin.isatty():
        text = read_input()
        if text is None and prompt is None:
            raise DataError("there is no prompt: give -p TEXT, pipe text in, or run `partita chat` in a terminal")
        return text or ""
    if as_json:
        raise DataError("--json answers one prompt: give -p TEXT or pipe text in")
    if not sys.stdout.isatty():
        raise DataError("standard output is not a terminal to talk in: give -p TEXT or pipe text in")
    return None


def read_input() -> str | None:
    """All of standard input without its last line end, None if there is nothing. DataError for what is not UTF-8."""
    data = sys.stdin.buffer.read()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"standard input is not UTF-8 text (byte {error.start}): convert it first") from None
    return text.removesuffix("\n").removesuffix("\r") if text else None


def begin(
    model: str | None, raw: bool, once: bool, options: dict[str, Any], kept: Kept
) -> tuple[LocalConversation, SessionFile]:
    """A conversation at its beginning, or where its file left it, and who keeps it.

    Options and file are judged before the model is loaded: a mistake should not take seconds.
    """
    from partita.cache.kv_format import KVFormat
    from partita.inference.sampling import Sampling
    from partita.text.chat_template import parse_variable
    from partita.text.template_process import shared

    from ..conversation import adapters
    from ..conversation.local import CacheOptions, LocalConversation
    from ..conversation.session_file import SessionFile, find
    from ..conversation.settings import NAMES, Settings, usual_sampling

    file = options["session"]
    if file is not None and raw:
        raise DataError("--session keeps a conversation, and --raw has none: leave one of them out")
    if options["draft"] is not None and options["lookup"]:
        raise DataError("--draft and --lookup exclude each other: choose one of them")
    options["template_var"] = dict(map(parse_variable, options["template_var"]))
    given = {name: options[name] for name in NAMES if options[name] is not None}
    Settings.of(given)
    cache = CacheOptions(**{name: options[name] for name in CACHE_OPTIONS})
    KVFormat.parse(cache.kv)
    found = None if file is None else find(file)
    if found is not None:
        given.setdefault("system", found.system)
    model, own_adapter = adapter_as_model(kept.model(model))
    read = adapters.read([*([] if own_adapter is None else [own_adapter]), *options["adapters"]])
    if not raw:
        shared().start()  # while the model is loaded
    base = load_model(model, **{name: options[name] for name in MODEL_OPTIONS})
    choice = adapters.Adapters(base, read)
    target = choice.model
    usual = Sampling() if once else usual_sampling(target.recommended)[0]
    settings = Settings.over(usual, given)
    draft = drafter_for(target, options["draft"], options["lookup"], cache)
    conversation = LocalConversation(target, settings, cache, raw=raw, once=once, draft=draft, adapters=choice)
    session_file = SessionFile(conversation, file)
    if found is not None:
        session_file.resume(found)
    kept.attach(conversation, chosen(given))
    tell(*conversation.notes, *conversation.unread(), *(other_base(adapter, model) for adapter in read.values()))
    return conversation, session_file


def drafter_for(target: LanguageModel, draft: str | None, lookup: bool, cache: CacheOptions) -> Drafter | None:
    """Who drafts for this model. A draft model computes where the model does, so that drafts stay on its device.

    Its cache follows the same options, as far as it was trained to.
    """
    from partita.draft_model import drafter

    model = None if draft is None else load_model(draft, backend=target.ops, what="the draft model")
    if model is None:
        return drafter(target, lookup=lookup)
    context = cache.context
    if isinstance(context, int):
        context = min(context, model.config.max_positions)
    sinks = cache.sinks if isinstance(cache.sinks, int) else None
    return drafter(target, draft=model, lookup=lookup, context=context, sinks=sinks, kv=cache.kv)
