"""Self-contained HTML pages: styles and pictures inside, formulas as MathML, nothing fetched from a network."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entropy_theory.records import written_whole
from entropy_theory.report import figures

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

_NAME = re.compile(r"<m([io])>([A-Za-z]{2,})</m\1>")
_BAR = '<mo stretchy="false">&#x0007C;</mo>'


def mathml(latex: str, display: bool = False) -> Markup:
    r"""Turn a LaTeX formula into MathML, which browsers render by themselves.

    Args:
        latex: The formula, from the package's own sources, without dollar signs.
        display: A line of its own.

    Example:
        >>> "<mfrac>" in mathml(r"\tfrac{a}{b}")
        True
    """
    from latex2mathml.converter import convert
    from markupsafe import Markup

    # What the converter does not know, sizes that the page sets by itself, and what it would set too narrow or slanted.
    known = {
        r"\tfrac": r"\frac",
        r"\textstyle": "",
        r"\Big": "",
        r"\not\Rightarrow": r"\nRightarrow",
        r"\iff": r"\;\iff\;",
        "_{rest}": r"_{\mathrm{rest}}",
    }
    for command, replacement in known.items():
        latex = latex.replace(command, replacement)
    converted = convert(latex, display="block" if display else "inline")
    # It spaces the names of functions and the bars of |x| as if they stood between two operands, or not at all.
    converted = _NAME.sub(r'<mo lspace="0.17em" rspace="0.17em">\2</mo>', converted)
    return Markup(converted.replace(_BAR, _BAR.replace("<mo", '<mo lspace="0em" rspace="0em"')))


def picture(draw: Callable[..., Figure], *arguments: Any, alt: str, **options: Any) -> Markup:
    """Draw a figure for light and for dark pages and embed both; the browser shows the one that fits.

    Args:
        draw: A function of ``report.figures``.
        *arguments: What it draws.
        alt: What the figure shows, for readers who cannot see it.
        **options: Further arguments of ``draw``.
    """
    from markupsafe import Markup, escape

    def source(theme: figures.Theme) -> str:
        svg = figures.to_svg(draw(*arguments, theme=theme, **options), theme)
        return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()

    return Markup(
        f'<picture><source media="print" srcset="{source("light")}">'
        f'<source media="(prefers-color-scheme: dark)" srcset="{source("dark")}">'
        f'<img src="{source("light")}" alt="{escape(alt)}"></picture>'
    )


def write_page(
    path: Path, template: str, data: Mapping[str, Any], filters: Mapping[str, Callable[..., Any]] | None = None
) -> None:
    """Render a template of this package to a file, whole or not at all.

    Args:
        path: The HTML file.
        template: A file name in ``report/templates``.
        data: What the template reads; every text is escaped.
        filters: What the template calls on its data, besides ``mathml``.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("entropy_theory.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"mathml": mathml, **(filters or {})}
    text = environment.get_template(template).render(**data)
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
