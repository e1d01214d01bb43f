"""The last gate before a page: HTML in, HTML of the elements and attributes below out.

It is the second of two: what makes the HTML (`markdown`, `code`, `formulas`) escapes all text itself and lets no raw
HTML through. Invariant: no element that loads, runs, submits or restyles anything is in the lists, no attribute that
does, and no element of SVG; of MathML none that takes HTML in (annotation-xml) or acts (maction).
"""

from __future__ import annotations

import nh3

REL = "noopener noreferrer nofollow"
SCHEMES = frozenset({"http", "https", "mailto"})
_HTML = """a blockquote br code dd del div dl dt em figcaption figure h1 h2 h3 h4 h5 h6 hr kbd li ol p pre s span
strong sub sup table tbody td th thead tr ul"""
_MATH = """math menclose mfrac mi mmultiscripts mn mo mover mpadded mphantom mprescripts mroot mrow mspace msqrt
mstyle msub msubsup msup mtable mtd mtext mtr munder munderover none"""
_MATH_ATTRIBUTES = """accent accentunder alttext columnalign columnlines columnspacing depth display displaystyle
fence form height largeop linethickness lspace mathvariant maxsize minsize movablelimits notation rowlines
rowspacing rspace scriptlevel separator stretchy symmetric voffset width"""
HTML, MATH, MATH_ATTRIBUTES = (frozenset(names.split()) for names in (_HTML, _MATH, _MATH_ATTRIBUTES))
_ATTRIBUTES = {
    "a": {"class", "href", "title"},
    "code": {"class"},
    "div": {"class"},
    "figure": {"class", "data-language"},
    "li": {"class"},
    "ol": {"start"},
    "span": {"aria-label", "class", "role", "title"},
    "td": {"class"},
    "th": {"class"},
    "ul": {"class"},
    **{name: set(MATH_ATTRIBUTES) for name in MATH},
}
_DROPPED = {"script", "style", "template", "noscript", "iframe", "object", "xmp", "svg", "textarea", "title"}


class Sanitizer:
    """One for many texts; it keeps nothing of them."""

    def __init__(self) -> None:
        self._cleaner = nh3.Cleaner(
            tags=set(HTML | MATH),
            clean_content_tags=_DROPPED,
            attributes=_ATTRIBUTES,
            link_rel=REL,
            set_tag_attribute_values={"a": {"target": "_blank"}},
            url_schemes=set(SCHEMES),
            url_relative="deny",
        )

    def clean(self, html: str) -> str:
        return self._cleaner.clean(html)
