"""The page's css/code.css out of the colours of `partita_apps.markup.style`.

    python docs/code_css.py          writes the file

A test compares the file with what this makes.
"""

from __future__ import annotations

from pathlib import Path

from partita_apps.markup.style import stylesheet

PLACE = Path(__file__).parents[1] / "apps/partita_apps/serve/page/css/code.css"

if __name__ == "__main__":
    PLACE.parent.mkdir(exist_ok=True)
    PLACE.write_text(stylesheet(), encoding="utf-8")
