"""The verification report as one HTML page: formulas as MathML, no script, no network."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from entropy_theory.records import written_whole

_KINDS = {
    "symbolic": "derived step by step; each difference is exactly 0",
    "high-precision": "compared with the definitions at 50 digits and more, at the points tried",
    "property": "tried on seeded random policies and corners",
    "convergence-order": "the order of the remainder, fitted on the rays tried",
    "certificate": "enclosed by ball arithmetic for every real number of the region",
    "monte-carlo": "a mean of draws compared with its standard error",
    "counterexample-search": "an optimiser with restarts looked for an exception",
}
# Figures that the verdict and the summary already carry, or that are too long for a page.
_HIDDEN = {"region", "steps", "families", "certificates", "z_per_seed", "seeds", "certified", "undecided"}


def verification_page(report: Mapping[str, Any], repository: str = "") -> str:
    """Lay out a report as a page.

    Args:
        report: ``Report.to_dict()``.
        repository: Address of the repository's files, before the path of a test; default: paths relative to the page.

    Returns:
        The page, as self-contained HTML.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("entropy_theory.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(mathml=mathml, inline=_inline, figures=_figures, seconds=lambda value: f"{value:.2g} s")
    results = report["results"]
    checks = [check for result in results for check in result["checks"]]
    present = [kind for kind in _KINDS if any(check["kind"] == kind for check in checks)]
    page: str = environment.get_template("verification.html.jinja").render(
        report=report,
        checks=len(checks),
        failed=sum(not check["passed"] for check in checks),
        kinds={kind: _KINDS[kind] for kind in present},
        repository=repository,
    )
    return page


def save_verification_page(report: Mapping[str, Any], path: Path) -> None:
    """Write the page, whole or not at all.

    Args:
        report: ``Report.to_dict()``.
        path: The file.
    """
    root = Path(__file__).resolve().parents[2]
    # In a checkout the tests are beside the package; an installed package has none to link to.
    tests = os.path.relpath(root, path.resolve().parent) + "/" if (root / "tests").is_dir() else ""
    with written_whole(path) as temporary:
        temporary.write_text(verification_page(report, tests), encoding="utf-8")


def mathml(latex: str, display: bool = False) -> Any:
    r"""Convert a LaTeX formula to MathML, marked safe for the template.

    Args:
        latex: The formula, without dollar signs.
        display: Whether it stands on a line of its own.

    Example:
        >>> "<mfrac>" in mathml(r"\frac{a}{b}")
        True
    """
    from markupsafe import Markup

    convert = import_module("latex2mathml.converter").convert
    # latex2mathml knows no \tfrac or \textstyle, and an operator name needs no special markup here.
    plain = (
        latex.replace(r"\tfrac", r"\frac")
        .replace(r"\textstyle", "")
        .replace(r"\Big", "")
        .replace(r"\not\Rightarrow", r"\nRightarrow")
    )
    return Markup(convert(plain, display="block" if display else "inline"))


def _inline(text: str) -> Any:
    """Escape a sentence and raise or lower what e^{-H}, p_i and the like mean to."""
    from markupsafe import Markup

    escaped = html.escape(text)
    escaped = re.sub(r"\^\{?(-?[\w.{}|ε]+?)\}?(?![\w.{}|ε])", lambda match: f"<sup>{match.group(1)}</sup>", escaped)
    return Markup(re.sub(r"\b([A-Za-z])_(\w+)", r"\1<sub>\2</sub>", escaped))


def _figures(data: Mapping[str, Any]) -> dict[str, str]:
    """Give the short figures of the evidence, ready to print."""
    shown = {}
    for name, value in data.items():
        if name in _HIDDEN or isinstance(value, dict):
            continue
        if isinstance(value, list):
            if len(value) > 6 or any(isinstance(entry, list | dict) for entry in value):
                continue
            text = ", ".join(_number(entry) for entry in value)
        else:
            text = _number(value)
        shown[name.replace("_", " ")] = text
    return shown


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
