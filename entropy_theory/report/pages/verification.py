"""The verification report as one HTML page: formulas as MathML, no script, no network."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entropy_theory.report.pages.page import picture, write_page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_KINDS = {
    "kernel": "proved in Coq and checked by its kernel, for every finite vocabulary",
    "symbolic": "derived step by step; each difference is exactly 0",
    "high-precision": "compared with the definitions at 50 digits and more, at the points tried",
    "property": "tried on seeded random policies and corners",
    "convergence-order": "the order of the remainder, fitted on the rays tried",
    "certificate": "enclosed by ball arithmetic for every real number of the region",
    "monte-carlo": "a mean of draws compared with its standard error",
    "counterexample-search": "an optimiser with restarts looked for an exception",
}
_CAPTIONS = {
    "one-sided-sign-theorem": "Random policies, both signs of the step: predicted falls all fall, predicted rises can"
    " turn into falls.",
    "step-bound": "The exact change of entropy and its bound, for steps of either sign on the first token of three"
    " policies. Where the other tokens share one probability the two agree.",
    "two-valued-directions": "Entropy of a policy that is sharpened on right answers, over the pass rate. It rises up"
    " to the marked pass rate, which depends on how varied right and wrong answers are.",
    "state-shift": "Left: one step in a constructed example, on fixed contexts and with the contexts that it shifts."
    " Right: the slopes of both in random policies over seven contexts.",
}
# Figures that the verdict and the summary already carry, or that are too long for a page.
_HIDDEN = {
    "region",
    "steps",
    "families",
    "certificates",
    "z_per_seed",
    "seeds",
    "certified",
    "undecided",
    "files",
    "digest",
    "theorems",
}


def save_verification_page(
    report: Mapping[str, Any], path: Path, drawn: Mapping[str, tuple[Callable[..., Figure], Any]] | None = None
) -> None:
    """Write a verification report as a page, whole or not at all.

    Args:
        report: ``Report.to_dict()``.
        path: The file. Tests are linked relative to it in a checkout; an installed package has none to link to.
        drawn: For the identifiers of the statements that have a picture: a function of ``report.figures`` and what it
            draws.
    """
    shown = {result["identifier"] for result in report["results"]} & set(drawn or ())
    root = Path(__file__).resolve().parents[3]
    tests = os.path.relpath(root, path.resolve().parent) + "/" if (root / "tests").is_dir() else ""
    checks = [check for result in report["results"] for check in result["checks"]]
    write_page(
        path,
        "verification.html",
        {
            "report": report,
            "checks": len(checks),
            "failed": sum(not check["passed"] for check in checks),
            "kinds": {kind: words for kind, words in _KINDS.items() if any(c["kind"] == kind for c in checks)},
            "repository": tests,
            "captions": _CAPTIONS,
            "pictures": {name: picture(*(drawn or {})[name], alt=_CAPTIONS[name]) for name in sorted(shown)},
        },
        filters={"inline": _inline, "figures": _figures, "seconds": lambda value: f"{value:.2g} s"},
    )


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
