"""`partita serve`: what is served, to whom, on which port. Imports no array library: models are computed elsewhere."""

from __future__ import annotations

import signal
import sys
import webbrowser
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from partita.errors import DataError
from partita.printable import printable

from ..completion import models as model_names
from ..options import adapter_options, cache_options, model_options, tell
from .listen import PORT

if TYPE_CHECKING:
    from .listen import Running
    from .names import Entry
    from .registry import Registry

MODEL_OPTIONS = ("backend", "device", "dtype", "threads")
CACHE_OPTIONS = ("context", "sinks", "kv")


class Serve(click.Command):
    """A command that is also a group: `install` and the like are commands of their own, any other word is a MODEL."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        found = SERVICE.get(args[0]) if args else None
        if found is None:
            return super().make_context(info_name, args, parent, **extra)
        return found.make_context(f"{info_name} {args.pop(0)}", args, parent, **extra)


@click.command("serve", cls=Serve)
@click.argument("models", nargs=-1, metavar="[MODEL]...", shell_complete=model_names)
@click.option("--host", default="127.0.0.1", show_default=True, metavar="H", help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=None,
    metavar="N",
    help="Port; 0: any.  [default: 1234, or the next one that is free]",
)
@click.option("--open", "opens", is_flag=True, help="Open the server's page in a browser.")
@click.option(
    "--api-key",
    envvar="PARTITA_API_KEY",
    default=None,
    metavar="KEY",
    help="Answer only who has this key (or in PARTITA_API_KEY); needed on any host but this machine's own.",
)
@click.option("--allow-host", multiple=True, metavar="H", help="A name that clients may call this machine; repeatable.")
@click.option("--allow-origin", multiple=True, metavar="O", help="A web page or app that may use it; repeatable.")
@click.option("--no-history", is_flag=True, help="Keep no chat of the page beyond the server's end.")
@click.option("--strict", is_flag=True, help="Refuse fields that are not known in place of listing them.")
@click.option("--pin", is_flag=True, help="Load every MODEL now, and never unload it.")
@click.option("--only", is_flag=True, help="Serve every MODEL and no other one of this machine.")
@click.option(
    "--ttl",
    type=click.FloatRange(min=1),
    default=None,
    metavar="SECONDS",
    help="Unload a model that nobody has used for so long.  [default: when another needs its memory]",
)
@click.option(
    "--endless",
    is_flag=True,
    help="Where a conversation outgrows the context, forget its oldest tokens in place of refusing it.",
)
@click.option("--max-waiting", type=click.IntRange(1, 4096), default=64, show_default=True, help="Requests that wait.")
@adapter_options
@cache_options
@model_options
def serve(
    models: tuple[str, ...],
    host: str,
    port: int | None,
    opens: bool,
    api_key: str | None,
    **options: Any,
) -> None:
    """Answer the tools that speak OpenAI's or Anthropic's API, from this machine alone.

    MODEL is named as in `partita chat`; the first one answers requests that name none. Every other model on this
    machine (`partita models list`) is loaded when it is asked for. `partita clients` shows how tools are pointed here.

    Also: serve install ARGUMENTS begins it at every login, serve uninstall ends that, serve status tells what runs.
    """
    from ..paths import data_folder
    from .app import token
    from .listen import listening, running, url_of
    from .server import build_app
    from .server import serve as run
    from .settings import Settings

    given = {
        "allow_hosts": options["allow_host"],
        "allow_origins": options["allow_origin"],
        "strict": options["strict"],
    }
    data = data_folder()
    settings = Settings(host=host, api_key=api_key, data=data, history=not options["no_history"], **given)
    entries = _entries(models, options)
    there = running(host, PORT) if port is None else None
    if there is not None and {each.name for each in entries} <= there.models:
        _reuse(there, token.link(there.url, token.ensure(data)) if opens else None)
        return
    with listening(host, port) as bound:
        _end_quietly()
        number = bound.getsockname()[1]
        app = build_app(_registry(entries, options), replace(settings, port=number))
        link = token.link(url_of(_reached(host), number), token.ensure(data))
        _say(url_of(host, number), link, entries, port is None and number != PORT)
        if opens:
            webbrowser.open(link)
        run(app, host, number, sockets=[bound], drain=settings.drain)


def _entries(models: Sequence[str], options: dict[str, Any]) -> list[Entry]:
    """What was named on the command line, or the default model; fetched where it is not here.

    Everything that can be judged before a model is loaded is judged here: a mistake should not take a request.
    """
    from partita.cache.kv_format import KVFormat

    from ..conversation import adapters
    from ..options import adapter_as_model
    from ..progress import TerminalProgress
    from .names import entry

    KVFormat.parse(options["kv"])
    found = []
    for place, name in enumerate(models or [None]):
        base, own = adapter_as_model(name)
        given = [] if own is None else [own]
        read = adapters.read([*given, *(options["adapters"] if not place else ())])
        folders = {each: str(adapter.path.absolute()) for each, adapter in read.items()}
        pinned, endless = options["pin"], options["endless"]
        found.append(entry(base, adapters=folders, pinned=pinned, endless=endless, progress=TerminalProgress()))
    return found


def _registry(entries: Sequence[Entry], options: dict[str, Any]) -> Registry:
    from .frames import Load
    from .names import Names
    from .registry import Registry

    given = {name: options[name] for name in (*MODEL_OPTIONS, *CACHE_OPTIONS, "max_waiting")}
    names = Names(entries, None) if options["only"] else Names(entries)
    return Registry(names, Load(model="", **given), ttl=options["ttl"])


def _end_quietly() -> None:
    """A signal before the server takes them: to be ended is no failure of a server."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))


def _reuse(there: Running, link: str | None) -> None:
    """A server is there already: it is said, and its page opened if that was wanted (link)."""
    click.echo(f"partita: a server is running already: {there.url}", err=True)
    if link is not None:
        webbrowser.open(link)


def _reached(host: str) -> str:
    """The address at which this machine reaches what listens on all of its addresses."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def _say(url: str, link: str, entries: Sequence[Entry], other: bool) -> None:
    """Where it is, for a person and, on standard output, for a program. The link opens the page with its token, which
    is for a person's eyes and no log."""
    names = ", ".join(printable(each.name) for each in entries)
    taken = f" ({PORT} is taken)" if other else ""
    tell(f"partita: serving {names}{taken}; Ctrl-C ends it")
    if sys.stderr.isatty():
        click.echo(f"partita: its page: {link}", err=True)
    click.echo(url)
    sys.stdout.flush()


@click.command("install", context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def install(arguments: tuple[str, ...]) -> None:
    """Begin the server now and at every login, with these arguments of `partita serve`.

    A launchd agent on macOS, a systemd user unit on Linux.
    """
    from .service import service

    with serve.make_context("serve", list(arguments)) as context:
        if context.params["opens"]:
            raise DataError("`open` is for a server that a person starts: leave it out", field="open")
    manager = service()
    manager.install(arguments)
    click.echo(str(manager.path))


@click.command("uninstall")
def uninstall() -> None:
    """End the server that `serve install` began, and begin it no more."""
    from .service import service

    manager = service()
    if not manager.uninstall():
        raise DataError(f"the server is not installed: there is no {manager.path}")
    click.echo(f"removed {manager.path}")


@click.command("status")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output.")
def status(as_json: bool) -> None:
    """Whether a server is installed, whether it runs, and where it answers."""
    from partita.printable import json_text

    from ..paths import data_folder
    from .app import token
    from .listen import running
    from .service import service

    manager = service()
    installed, there = manager.path.exists(), running("127.0.0.1", PORT)
    runs = installed and manager.runs()
    link = None if there is None else token.link(there.url, token.ensure(data_folder()))
    if as_json:
        answers = None if there is None else {"url": there.url, "models": sorted(there.models), "page": link}
        document = {"installed": installed, "path": str(manager.path), "running": runs, "server": answers}
        click.echo(json_text(document))
        return
    click.echo(f"{'installed' if installed else 'not installed'}: {_shorter(manager.path)}")
    click.echo(f"service: {'running' if runs else 'not running'}")
    click.echo("no server answers" if there is None else f"answers at {there.url}: {', '.join(sorted(there.models))}")
    if link is not None:
        click.echo(f"its page: {link}")


def _shorter(path: Path) -> str:
    home = Path.home()
    return str(Path("~") / path.relative_to(home)) if path.is_relative_to(home) else str(path)


SERVICE = {"install": install, "uninstall": uninstall, "status": status}
