"""The table of all rules, made from the registry and from the records of the contest.

python -m entropy_theory.control.table simulations/results/control_contest_{contest,long}.json > docs/methods.md
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from entropy_theory import records
from entropy_theory.control.base import Rule
from entropy_theory.control.parameters import Choice, Number
from entropy_theory.control.registry import rule_class, rule_names
from entropy_theory.control.spec import format_value

_HEADER = """\
# Control rules

Made by
`python -m entropy_theory.control.table simulations/results/control_contest_{contest,long}.json > docs/methods.md`
from the registry and two records; a test holds them together.

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
- *In the contest*: means over the last ten updates ± 95 % t-intervals, with the setting that tuning chose,
  hardly ever the default ([protocol and comparison](findings.md#a-contest-of-rules)); without an interval, of one
  run of three times as many updates.
"""
_MEASURES = {"entropy": "entropy", "reward": "reward", "distinct_right": "distinct right answers of 16"}
_TASKS = {"sum": "sum task", "arithmetic": "arithmetic in steps"}


def methods_table(contest: Mapping[str, Any] | None = None, long_runs: Mapping[str, Any] | None = None) -> str:
    """Write the table of all registered rules in Markdown, what each of them can be set to, and how it fared.

    Args:
        contest: The record of the contest of `simulations/control_contest.py`; None leaves it out.
        long_runs: The record of its long runs; None leaves them out.

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
        if contest is not None:
            lines += _in_contest(cls.name, contest, long_runs)
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


def _in_contest(name: str, contest: Mapping[str, Any], long_runs: Mapping[str, Any] | None) -> list[str]:
    """A paragraph for each task and number of updates per batch, with the long run of the same setting."""
    late = {} if long_runs is None else long_runs["summary"]["methods"]
    paragraphs = []
    for task, words in _TASKS.items():
        for method, row in contest["summary"][task]["methods"].items():
            if row["rule"].partition("(")[0] != name:
                continue
            twice = f" ({row['updates']} updates per batch)" if row["updates"] > 1 else ""
            means = [
                f"{unit} {row[column]['mean']:.2f} ± {row[column]['half_width']:.2f}"
                for column, unit in _MEASURES.items()
            ]
            paragraphs += ["", f"In the contest, {words}, `{row['rule']}`{twice}: {', '.join(means)}."]
            if task == "sum" and late.get(method, {}).get("rule") == row["rule"]:
                ends = [f"{unit} {late[method][column]:.2f}" for column, unit in _MEASURES.items()]
                paragraphs[-1] += f" After three times as many updates: {', '.join(ends)}."
    return paragraphs


if __name__ == "__main__":
    import entropy_theory.control  # noqa: F401  (registers)

    print(methods_table(*(records.read_json(Path(name)) for name in sys.argv[1:])), end="")
