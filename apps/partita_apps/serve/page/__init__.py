"""The page at the server's address: which models there are, their state, and how a tool is pointed at them.

HTML without a script, made when it is asked for. What others have named is escaped; nothing is loaded from elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files

from starlette.responses import HTMLResponse, Response

from partita import __version__
from partita.printable import printable
from partita.units import disk_size, memory_size

from ..api.exchange import Endpoint, Exchange
from ..registry import Description

POLICY = "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


async def page(exchange: Exchange) -> Response:
    """What anybody sees who reaches the server; which models there are, only where no key is needed to ask for them."""
    models, key = exchange.models, exchange.service.settings.api_key
    shown = [models.describe(name) for name in models.names()] if key is None else None
    url = f"http://{exchange.request.headers['host']}"
    return HTMLResponse(document(url, shown), headers={"content-security-policy": POLICY})


async def style(exchange: Exchange) -> Response:
    return Response(files(__name__).joinpath("style.css").read_bytes(), media_type="text/css")


ENDPOINTS = (
    Endpoint("GET", "/", page, "The server's page, for a browser."),
    Endpoint("GET", "/style.css", style, "Its style."),
)


def document(url: str, models: Sequence[Description] | None) -> str:
    """The page of a server at an address. models: None where they are not shown."""
    address = escape(url)
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
{_LOCKED if models is None else _table(models)}
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


_LOCKED = '<p class="faint">The server answers who has its key.</p>'


def _table(models: Sequence[Description]) -> str:
    rows = (
        "".join(map(_row, models)) or '<tr><td colspan="5" class="faint">None yet: partita models pull NAME</td></tr>'
    )
    return f"""<h2>Models</h2>
<div class="scroll">
<table>
<thead><tr><th>name</th><th>state</th><th class="number">context</th><th class="number">on disk</th>
<th class="number">in memory</th></tr></thead>
<tbody>{rows}</tbody>
</table>
</div>
<p class="faint">A model is loaded when it is asked for, and unloaded when another needs its memory.</p>"""


def _row(model: Description) -> str:
    context = "" if model.context is None else f"{model.context:,}"
    memory = memory_size(model.memory) if model.memory else ""
    return (
        f'<tr><td class="name">{escape(printable(model.name))}</td><td class="{model.state}">{model.state}</td>'
        f'<td class="number">{context}</td><td class="number">{disk_size(model.bytes)}</td>'
        f'<td class="number">{memory}</td></tr>'
    )
