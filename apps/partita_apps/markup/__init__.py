"""Text that a model wrote as HTML that a page may show: Markdown, code in colours, formulas as MathML, all sanitised.

Not here: how it looks (the page's stylesheets), how it travels (the server). Invariant: what comes out holds no script,
no handler, no style and nothing that is loaded; links lead to http, https and mailto alone.
"""

from .blocks import Blocks, Change, Renderer

__all__ = ["Blocks", "Change", "Renderer"]
