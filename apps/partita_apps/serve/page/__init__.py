"""The page at the server's address: which models there are, their state, and how a tool is pointed at them.

HTML without a script, made when it is asked for. What others have named is escaped; nothing is loaded from elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from partita import __version__
from partita.printable import printable
from partita.units import disk_size, memory_size

from ..registry import Description, Registry

POLICY = "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def routes(registry: Registry) -> list[Route]:
    """`/`, and its style."""

    async def page(request: Request) -> Response:
        models = [registry.describe(name) for name in registry.names()]
        url = f"http://{request.headers.get('host', '')}"
        return HTMLResponse(document(url, models), headers={"content-security-policy": POLICY})

    async def style(request: Request) -> Response:
        return Response(files(__package__).joinpath("style.css").read_bytes(), media_type="text/css")

    return [Route("/", page), Route("/style.css", style)]


def document(url: str, models: Sequence[Description]) -> str:
    """The page of a server at an address."""
    address = escape(url)
    rows = (
        "".join(map(_row, models)) or '<tr><td colspan="5" class="faint">None yet: partita models pull NAME</td></tr>'
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>partita</title>
<link rel="stylesheet" href="/style.css">
</head>
<body>
<main>
<h1>partita</h1>
<p class="faint">Language models on this machine, version {escape(__version__)}</p>
<h2>Models</h2>
<div class="scroll">
<table>
<thead><tr><th>name</th><th>state</th><th class="number">context</th><th class="number">on disk</th>
<th class="number">in memory</th></tr></thead>
<tbody>{rows}</tbody>
</table>
</div>
<p class="faint">A model is loaded when it is asked for, and unloaded when another needs its memory.</p>
<h2>Connect a tool</h2>
<dl>
<dt>OpenAI's API</dt><dd><code>{address}/v1</code></dd>
<dt>Anthropic's API</dt><dd><code>{address}</code></dd>
<dt>Key</dt><dd>any, unless the server was given one</dd>
<dt>Settings of a tool</dt><dd><code>partita clients</code></dd>
<dt>What it understands</dt><dd><a href="/openapi.json">openapi.json</a> · <a href="/metrics">metrics</a> ·
<a href="/health">health</a></dd>
</dl>
</main>
</body>
</html>
"""


def _row(model: Description) -> str:
    context = "" if model.context is None else f"{model.context:,}"
    memory = memory_size(model.memory) if model.memory else ""
    return (
        f'<tr><td class="name">{escape(printable(model.name))}</td><td class="{model.state}">{model.state}</td>'
        f'<td class="number">{context}</td><td class="number">{disk_size(model.bytes)}</td>'
        f'<td class="number">{memory}</td></tr>'
    )
