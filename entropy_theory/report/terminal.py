"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


def verification_table(report: Mapping[str, Any]) -> Table:
    """Lay out a verification report: a row per check, with the verdict in words that name its kind.

    Args:
        report: ``Report.to_dict()``.
    """
    from rich.markup import escape
    from rich.table import Table

    results = report["results"]
    checks = [check for result in results for check in result["checks"]]
    failed = sum(not check["passed"] for check in checks)
    outcome = "all passed" if not failed else f"{failed} failed"
    caption = f"{len(results)} statements, {len(checks)} checks, {outcome}, {report['seconds']:.1f} s"
    table = Table(caption=caption, expand=False)
    table.add_column("statement", no_wrap=True)
    table.add_column("check")
    table.add_column("verdict")
    for result in results:
        for index, check in enumerate(result["checks"]):
            table.add_row(
                escape(result["identifier"]) if index == 0 else "",
                escape(f"{check['kind']}: {check['name']}"),
                ("[green]✓[/] " if check["passed"] else "[bold red]✗[/] ") + escape(check["verdict"]),
                end_section=index == len(result["checks"]) - 1,
            )
    return table


def arms_table(runs: Sequence[Mapping[str, Any]], rules: Mapping[str, str]) -> Table:
    """Lay out the arms of the demo: the means of the last steps, one column per seed when there are several.

    Args:
        runs: Dicts with ``arm``, ``seed`` and ``final``.
        rules: The rule of each arm.
    """
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="means of the last steps", expand=False)
    for name in ("arm", "rule", "entropy", "reward", "distinct right", "dropped"):
        table.add_column(name, justify="left" if name in ("arm", "rule") else "right", no_wrap=name == "arm")
    for arm, rule in rules.items():
        finals = [run["final"] for run in runs if run["arm"] == arm]

        def cell(name: str, form: str, finals: Sequence[Mapping[str, float]] = finals) -> str:
            return " / ".join(format(final[name], form) if name in final else "–" for final in finals)

        table.add_row(
            arm,
            escape(rule),
            cell("entropy", ".3f"),
            cell("reward", ".2f"),
            cell("distinct_right", ".1f"),
            cell("dropped_share", ".1%"),
        )
    return table
