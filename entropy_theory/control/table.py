"""The table of all rules, made from the registry: `python -m entropy_theory.control.table > docs/methods.md`."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, fields

from entropy_theory.control.base import Rule
from entropy_theory.control.registry import rule_class, rule_names
from entropy_theory.control.spec import format_value

_HEADER = """\
# Control rules

Made from the registry by `python -m entropy_theory.control.table > docs/methods.md`; a test holds the two together.

Every rule turns the statistics of a batch into one gradient coefficient per token, g = ∂J/∂log p. Quadrants are those
of (A, S_c): Q1 A > 0, S_c > 0 (entropy falls); Q2 A > 0, S_c < 0 (rises); Q3 A < 0, S_c > 0 (rises); Q4 A < 0, S_c < 0
(falls). "batch" rules are fixed once per generation batch, "live" ones need the ratio at every update. "Parity" names
the official code whose recorded outputs the tests compare with: masks to the bit, gradients and losses to float32
round-off.
"""


def methods_table() -> str:
    """Write the table of all registered rules in Markdown, and what each of them can be set to.

    Example:
        >>> "| `clip-b` |" in methods_table()
        True
    """
    lines = [_HEADER, "| rule | paper | kind | phase | needs | parity | quadrants |", "| --- " * 7 + "|"]
    classes = [rule_class(name) for name in rule_names()]
    for cls in classes:
        needs = ", ".join(f"`{need}`" for need in cls.needs) or "—"
        cells = (f"`{cls.name}`", cls.paper or "—", cls.kind, cls.phase, needs, cls.parity, cls.quadrants)
        lines.append(f"| {' | '.join(cells)} |")
    for cls in classes:
        lines += ["", f"## `{cls.name}`", "", _summary(cls), "", *_settings(cls), *_formula(cls)]
    return "\n".join(lines).rstrip() + "\n"


def _summary(cls: type[Rule]) -> str:
    """The first sentence of the docstring."""
    return inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].replace("\n", " ")


def _formula(cls: type[Rule]) -> list[str]:
    """The first indented block of the docstring: the formula."""
    blocks = inspect.cleandoc(cls.__doc__ or "").split("\n\n")
    found = next((block for block in blocks if block.startswith("    ")), None)
    return [] if found is None else ["", "```", inspect.cleandoc(found), "```"]


def _settings(cls: type[Rule]) -> list[str]:
    """The parameters with their defaults."""
    shown = [f"`{f.name}={format_value(f.default)}`" for f in fields(cls) if f.default is not MISSING]
    return [f"Defaults: {', '.join(shown)}."] if shown else []


if __name__ == "__main__":
    import entropy_theory.control  # noqa: F401  (registers)

    print(methods_table(), end="")
