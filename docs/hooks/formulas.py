"""Formulas between dollar signs become MathML, which browsers render by themselves: no script, nothing fetched."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

from entropy_theory.report.pages.page import mathml

# what pymdownx.arithmatex makes of $...$ and $$...$$
_FORMULA = re.compile(
    r'<span class="arithmatex">\\\((?P<inline>.*?)\\\)</span>'
    r'|<div class="arithmatex">\s*\\\[(?P<display>.*?)\\\]\s*</div>',
    re.DOTALL,
)


def on_page_content(html: str, **_: Any) -> str:
    """Render the formulas of a page."""
    return _FORMULA.sub(_render, html)


def _render(match: re.Match[str]) -> str:
    if match["inline"] is not None:
        return str(mathml(unescape(match["inline"]).strip()))
    return f'<div class="formula">{mathml(unescape(match["display"]).strip(), display=True)}</div>'
