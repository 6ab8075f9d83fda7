"""The table of all rules, made from the registry: `python -m entropy_theory.control.table > docs/methods.md`."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, fields

from entropy_theory.control.base import Rule
from entropy_theory.control.parameters import Choice, Number
from entropy_theory.control.registry import rule_class, rule_names
from entropy_theory.control.spec import format_value

_HEADER = """\
# Control rules

Made from the registry by `python -m entropy_theory.control.table > docs/methods.md`; a test holds the two together.

Every rule turns the statistics of a batch into one gradient coefficient per token, g = ∂J/∂log p. Quadrants are those
of (A, S_c): Q1 A > 0, S_c > 0 (entropy falls); Q2 A > 0, S_c < 0 (rises); Q3 A < 0, S_c > 0 (rises); Q4 A < 0, S_c < 0
(falls).

- *Phase*: "batch" rules are fixed once per generation batch; "live" ones need the current ratio and are evaluated at
  every update.
- *Scope*: a rule of scope "token" decides token by token, one of "sequence" needs whole rows, one of "batch" takes
  statistics over all tokens of an optimizer step.
- *Needs*: the statistics that a rule reads besides log-probabilities, advantages and the mask.
- *Parity*: the official code whose recorded outputs the tests compare with: masks to the bit, gradients and losses to
  float32 round-off.
"""


def methods_table() -> str:
    """Write the table of all registered rules in Markdown, and what each of them can be set to.

    Example:
        >>> "| `clip-b` |" in methods_table()
        True
    """
    lines = [_HEADER, "| rule | paper | kind | phase | scope | needs | parity | quadrants |", "| --- " * 8 + "|"]
    classes = [rule_class(name) for name in rule_names()]
    for cls in classes:
        needs = ", ".join(f"`{need}`" for need in cls.needs) or "—"
        cells = (f"`{cls.name}`", cls.paper or "—", cls.kind, cls.phase, cls.scope, needs, cls.parity, cls.quadrants)
        lines.append(f"| {' | '.join(cells)} |")
    for cls in classes:
        lines += ["", f"## `{cls.name}`", "", _summary(cls), *_formula(cls), *_settings(cls)]
        if cls.departures:
            lines += ["", f"Departures: {cls.departures}"]
    return "\n".join(lines).rstrip() + "\n"


def _summary(cls: type[Rule]) -> str:
    """The first sentence of the docstring."""
    return inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].replace("\n", " ")


def _formula(cls: type[Rule]) -> list[str]:
    """The first indented block of the docstring: the formula."""
    blocks = inspect.cleandoc(cls.__doc__ or "").split("\n\n")
    formula = next((block for block in blocks if block.startswith("    ")), None)
    return [] if formula is None else ["", "```", inspect.cleandoc(formula), "```"]


def _settings(cls: type[Rule]) -> list[str]:
    """The parameters with their defaults and ranges."""
    shown = []
    for f in fields(cls):
        if f.default is not MISSING:
            check = f.metadata.get("check")
            allowed = f", {check}" if isinstance(check, Number | Choice) else ""
            shown.append(f"- `{f.name}={format_value(f.default)}`{allowed}")
    return ["", *shown] if shown else []


if __name__ == "__main__":
    import entropy_theory.control  # noqa: F401  (registers)

    print(methods_table(), end="")
