"""docs/clients.md out of the settings that `partita clients` shows, for a server with an example of a model.

    python docs/clients.py          writes the file

A test compares the file with what this makes.
"""

from __future__ import annotations

import sys
from pathlib import Path

from partita_apps.serve.clients.command import CLIENTS, body
from partita_apps.serve.clients.guide import Client, Server

PLACE = Path(__file__).parent / "clients.md"
SERVER = Server("http://127.0.0.1:1234", "qwen3-4b", 32768)
HEAD = """\
# Tools and the server

Written by `docs/clients.py` from what `partita clients` prints. There, the address, the model and its context are those
of your server; here they are of a model `qwen3-4b` with a context of 32,768 tokens, at the usual port.

`partita serve` needs no key on this machine; tools that insist on one get `none`. Where the server was started with one
(`--api-key`, or the variable `PARTITA_API_KEY`), the settings name that variable, or `YOUR-KEY` in forms.

An agent sends thousands of tokens with its first word. A shorter context cannot serve it: the request is refused
with both numbers, and nothing is cut. What was read once is not read again: a turn goes on where the one before ended.

"Run with" means that `make agents` started that version with these very settings: it called a tool and went on with
what the tool said (aider changed a file). For libraries it means that the tests ran the program. The others are written
from their documentation.
"""


def document() -> str:
    lines = [HEAD, "| `partita clients …` | tool | calls | first request | settings |", "|---|---|---|---|---|"]
    lines += [_row(client) for client in CLIENTS.values()]
    for client in CLIENTS.values():
        lines += ["", f"## {client.title}", "", _sentence(client), "", "```text"]
        lines += "\n".join(body(client.settings(SERVER))).strip("\n").splitlines()
        lines.append("```")
    return "\n".join(lines) + "\n"


def _row(client: Client) -> str:
    needs = "" if client.needs is None else f"{client.needs:,} tokens"
    return f"| `{client.name}` | [{client.title}](#{_anchor(client)}) | `{client.api}` | {needs} | {client.tested()} |"


def _anchor(client: Client) -> str:
    kept = "".join(c for c in client.title.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")


def _sentence(client: Client) -> str:
    tested = client.tested()
    return f"{tested[:1].upper()}{tested[1:]}. Calls `{client.api}`."


if __name__ == "__main__":
    PLACE.write_text(document(), encoding="utf-8")
    print(PLACE, file=sys.stderr)
