"""The command `partita`: a table of subcommands, and the one place where errors become a line and an exit status.

A subcommand's module is imported when that subcommand runs, never before, so that help costs no library.
Exit status: 0 done, 2 a mistake the user can act on (one line on standard error), 128 and the number of the signal that
ended it (130: Ctrl-C).
"""

from __future__ import annotations

import errno
import gc
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import click
from click.shell_completion import shell_complete

from partita import __version__
from partita.errors import NO_SPACE, PartitaError
from partita.printable import printable

from .aliases import similar
from .messages import invoked, options_of, rendered
from .terminal import end_on_signals, is_gone, is_plain, open_streams, silence

COMPLETE = "_PARTITA_COMPLETE"  # how a shell asks, in the name that click gives it


@dataclass(frozen=True)
class Entry:
    """Where a subcommand lives, and the line that the help shows for it."""

    module: str
    attribute: str
    summary: str


COMMANDS = {
    "chat": Entry("partita_apps.chat.command", "chat", "Talk with a model, or answer one prompt."),
    "serve": Entry("partita_apps.serve.command", "serve", "Answer other programs: OpenAI's and Anthropic's API."),
    "clients": Entry("partita_apps.serve.clients.command", "clients", "Show how tools are pointed at the server."),
    "finetune": Entry(
        "partita_apps.finetune.command", "finetune", "Train a model, or an adapter for one, on your data."
    ),
    "convert": Entry("partita_apps.convert", "convert", "Convert, quantize and fuse models and adapters."),
    "eval": Entry("partita_apps.evaluate", "evaluate", "Measure the perplexity of a text."),
    "bench": Entry("partita_apps.bench", "bench", "Measure speed and memory on this machine."),
    "models": Entry("partita_apps.models", "models", "List, suggest, fetch and remove models."),
    "inspect": Entry("partita_apps.inspection.command", "inspect", "Show what a file or folder holds."),
    "info": Entry("partita_apps.info", "info", "Show backends, devices, versions and memory."),
}
ALIASES = {
    "run": Entry("partita_apps.chat.command", "run_command", "chat MODEL, or answer PROMPT"),
    "pull": Entry("partita_apps.models", "pull_command", "models pull"),
    "list": Entry("partita_apps.models", "list_command", "models list"),
    "rm": Entry("partita_apps.models", "rm_command", "models rm"),
}
"""Commands by the names that other tools give them: one line of the help."""


class LazyGroup(click.Group):
    """A group that knows its subcommands' names and summaries without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name) or ALIASES.get(cmd_name)
        return None if entry is None else getattr(importlib.import_module(entry.module), entry.attribute)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = [*COMMANDS, *ALIASES]
        if args[0] not in known and not args[0].startswith("-") and not ctx.resilient_parsing:
            raise click.UsageError(f"No such command {args[0]!r}.{similar(args[0], known)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])
        formatter.write_paragraph()
        formatter.write_text("Also: run MODEL [PROMPT] for chat; pull, list and rm for those of models.")


@click.group(cls=LazyGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="partita", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Run language models on this machine: one model and one cache, computed by MLX, torch or numpy."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: run and exit."""
    open_streams()
    end_on_signals()
    if COMPLETE in os.environ:
        sys.exit(shell_complete(cli, {}, "partita", COMPLETE, os.environ[COMPLETE]))
    status = run(sys.argv[1:] if arguments is None else arguments)
    gc.freeze()  # Python would look for garbage among all that torch is made of, for half a second, before it ends
    sys.exit(status)


def run(arguments: Sequence[str]) -> int:
    """Exit status of `partita` with these arguments. Whatever a user can act on has become one line by then."""
    try:
        with cli.make_context("partita", list(arguments), color=False if is_plain() else None) as context:
            cli.invoke(context)
        sys.stdout.flush()
        return 0
    except click.exceptions.Exit as request:
        return request.exit_code
    except click.UsageError as error:
        return usage(error, arguments)
    except PartitaError as error:
        _, command = invoked(cli, arguments)
        return complain(rendered(str(error), options_of(command)))
    except click.ClickException as error:
        return complain(error.format_message())
    except (KeyboardInterrupt, click.Abort):
        return 130
    except MemoryError as error:
        return complain(f"memory ran out ({error or 'no more is known'}): ask for less, or free some")
    except OSError as error:
        return fault(error)


def fault(error: OSError) -> int:
    """The system's word where nobody translated it: of a standard stream, of a current folder that is gone."""
    if error.errno == errno.EPIPE or (error.errno == errno.EIO and is_gone()):
        silence(sys.stdout)  # the reader of a pipe has left: nothing to say, and nobody to say it to
        return 128 + 13
    if error.errno in (*NO_SPACE, errno.EBADF) and error.filename is None:
        silence(sys.stdout)
        todo = "free some space" if error.errno in NO_SPACE else "standard output is not open for writing"
        return complain(f"cannot write ({error.strerror}): {todo}")
    try:
        os.getcwd()
    except OSError:
        return complain("the current folder was removed: go to another one")
    raise error


def complain(message: str) -> int:
    """The one line; status 2."""
    try:
        click.echo(f"partita: {printable(' '.join(message.split()))}", err=True)
    except OSError:  # the status says it
        silence(sys.stderr)
    return 2


def usage(error: click.UsageError, arguments: Sequence[str]) -> int:
    """A mistake in the arguments, in one line that names the command's help."""
    where, _ = invoked(cli, arguments)
    path = f"partita {where}".rstrip()
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return complain(f"{path} needs a subcommand (see {path} --help)")
    message = error.format_message()
    if isinstance(error, click.NoSuchOption):
        message = f"{error.message}{similar(error.option_name, error.possibilities or ())}"
    message = " ".join(message.split()).rstrip(".")
    return complain(f"{where}{': ' if where else ''}{message[:1].lower()}{message[1:]} (see {path} --help)")


if __name__ == "__main__":
    main()
