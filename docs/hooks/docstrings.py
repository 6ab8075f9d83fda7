"""The package's docstring headings, as griffe's Google style knows them.

"Example:" is its "Examples:", and the short paragraphs "Formula: …", "Shapes: …", "Departures: …" open in bold.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_HEADINGS = "Formula|Symbols|Shapes|Domain|Metrics|Quadrants|Departures"
_PARAGRAPH = re.compile(rf"^({_HEADINGS}): (.+(?:\n(?!(?:{_HEADINGS}):).+)*)", re.MULTILINE)


class Headings(griffe.Extension):
    """Rewrites docstrings before they are parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of an object, if it has one."""
        if obj.docstring is not None:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = _PARAGRAPH.sub(_paragraph, text)


def _paragraph(match: re.Match[str]) -> str:
    # griffe would take a heading with an indented line below it for a box of its own
    return f"\n**{match[1]}.** " + re.sub(r"\n +", "\n", match[2]) + "\n"
