"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from entropy_theory.report.findings import span

if TYPE_CHECKING:
    from rich.table import Table

    from entropy_theory.intervals import Interval


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


def verification_summary(report: Mapping[str, Any]) -> Table:
    """Lay out a verification report in short: a row per statement, with the kinds of check it passed.

    Args:
        report: ``Report.to_dict()``.
    """
    from rich.markup import escape
    from rich.table import Table

    checks = [check for result in report["results"] for check in result["checks"]]
    failed = sum(not check["passed"] for check in checks)
    outcome = "all passed" if not failed else f"{failed} failed"
    table = Table(
        caption=f"{len(report['results'])} statements, {len(checks)} checks, {outcome}, {report['seconds']:.1f} s",
        padding=(0, 1, 0, 0),
    )
    table.add_column("statement", no_wrap=True)
    table.add_column("checked by")
    for result in report["results"]:
        kinds = dict.fromkeys(check["kind"] for check in result["checks"] if check["passed"])
        broken = dict.fromkeys(check["kind"] for check in result["checks"] if not check["passed"])
        mark = "[green]✓[/] " if not broken else f"[bold red]✗ {escape(', '.join(broken))}[/] "
        table.add_row(mark + escape(result["identifier"]), escape(", ".join(kinds)))
    return table


def simulation_table(summary: Mapping[str, float]) -> Table:
    """Lay out a simulation's summary.

    Args:
        summary: ``SimulationResult.summary``.
    """
    from rich.table import Table

    table = Table(show_header=False)
    rows = [
        ("entropy, first and last (nats)", f"{summary['entropy_first']:.4f} → {summary['entropy_last']:.4f}"),
        ("reward, first and last", f"{summary['reward_first']:.3f} → {summary['reward_last']:.3f}"),
        ("mean |realised − predicted| / mean |realised|", f"{summary['relative_error']:.2%}"),
        ("the same, second order in the prediction", f"{summary['second_order_relative_error']:.2%}"),
        ("quadrants Q1 to Q4, shares", " / ".join(f"{summary[f'quadrant_q{q}']:.1%}" for q in (1, 2, 3, 4))),
        ("dropped by the rule", f"{summary['dropped_share']:.2%}"),
        ("policy-steps per second", f"{summary['policy_steps_per_second']:,.0f} ({summary['seconds']:.1f} s)"),
    ]
    if "slope" in summary:
        rows.insert(4, ("realised on predicted, slope", f"{summary['slope']:.4f} ± {summary['slope_error']:.4f}"))
    for name, value in rows:
        table.add_row(name, value)
    return table


def arms_table(finals: Mapping[str, Mapping[str, Interval]], rules: Mapping[str, str]) -> Table:
    """Lay out how the arms of the demo ended: means over seeds with 95 % t-intervals.

    Args:
        finals: Per arm and metric the interval over seeds.
        rules: The rule of each arm.
    """
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        title="means of the last steps over seeds, with 95 % t-intervals",
        caption=escape(", ".join(f"{arm}: {rule}" for arm, rule in rules.items())),
        expand=False,
        padding=(0, 1, 0, 0),
    )
    for name in ("arm", "entropy (nats)", "reward", "distinct right", "dropped"):
        table.add_column(name, justify="left" if name == "arm" else "right", no_wrap=True)
    for arm in rules:
        metrics = finals[arm]
        table.add_row(
            arm,
            span(metrics["entropy"]),
            span(metrics["reward"]),
            span(metrics["distinct_right"], ".1f"),
            f"{metrics['dropped_share'].mean:.1%}",
        )
    return table


def lens_table(table: Mapping[str, Any]) -> Table:
    """Lay out the predicted changes of entropy of all rules on one batch.

    Args:
        table: ``LensTable.to_dict()``.
    """
    from rich.markup import escape
    from rich.table import Table

    def interval(estimate: Mapping[str, float]) -> str:
        return f"{estimate['value']:+.4f} [{estimate['low']:+.4f}, {estimate['high']:+.4f}]"

    shares = " / ".join(f"{table['shares'][f'q{q}']:.1%}" for q in (1, 2, 3, 4))
    layout = Table(
        title=f"predicted change of mean entropy for a step of {table['step_size']:g} (nats), first order",
        caption=f"{table['tokens']:,} tokens, {table['clusters']} {table['cluster_kind']} resampled "
        f"{table['resamples']} times (95 %), mean entropy {table['entropy']:.4f}, Q1 to Q4 {shares}",
        expand=False,
        padding=(0, 1, 0, 0),
    )
    for name in ("rule", "total", "against none", "Q1", "Q2", "Q3", "Q4", "dropped", "random mask", "gradient"):
        layout.add_column(name, justify="left" if name == "rule" else "right", no_wrap=name != "rule")
    second = any(row["second_order"] is not None for row in table["rows"])
    if second:
        layout.add_column("2nd order", justify="right", no_wrap=True)
    for row in table["rows"]:
        cells = [escape(row["rule"]), interval(row["total"]), interval(row["against_none"])]
        cells += [f"{row['quadrants'][f'q{q}']:+.4f}" for q in (1, 2, 3, 4)]
        random = "—" if row["random_total"] is None else f"{row['random_total']:+.4f} ± {row['random_deviation']:.4f}"
        cells += [f"{row['dropped_share']:.2%}", random, f"{row['gradient_kept']:.1%}"]
        if second:
            cells.append("—" if row["second_order"] is None else f"{row['second_order']:+.4f}")
        layout.add_row(*cells)
    return layout
