"""Tables for the terminal of what verification, simulation, lens, ledger and audit give as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from entropy_theory.report.findings import span

if TYPE_CHECKING:
    from rich.table import Table

    from entropy_theory.intervals import Interval


def verification_table(report: Mapping[str, Any]) -> Table:
    """Lay out a verification report: a row per check, with the verdict in words that name its kind."""
    from rich.markup import escape
    from rich.table import Table

    results = report["results"]
    table = Table(caption=_outcome(report), expand=False)
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
    """Lay out a verification report in short: a row per statement, with the kinds of check it passed."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        caption=_outcome(report),
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
    """Lay out a simulation's summary."""
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


def arms_table(
    finals: Mapping[str, Mapping[str, Interval]],
    rules: Mapping[str, str],
    answers: tuple[str, str] = ("distinct_right", "distinct right"),
) -> Table:
    """Lay out how the arms of a demo ended: means over seeds with 95 % t-intervals.

    Args:
        finals: Per arm and metric the interval over seeds.
        rules: The arms' rules.
        answers: The metric that counts answers, and its heading.
    """
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        title="means of the last steps over seeds, with 95 % t-intervals",
        caption=escape(", ".join(f"{arm}: {rule}" for arm, rule in rules.items())),
        expand=False,
        padding=(0, 1, 0, 0),
    )
    for name in ("arm", "entropy (nats)", "reward", answers[1], "dropped"):
        table.add_column(name, justify="left" if name == "arm" else "right", no_wrap=True)
    for arm in rules:
        metrics = finals[arm]
        table.add_row(
            arm,
            span(metrics["entropy"]),
            span(metrics["reward"]),
            span(metrics[answers[0]], ".1f") if answers[0] in metrics else "",
            f"{metrics['dropped_share'].mean:.1%}",
        )
    return table


def fitted(layout: Table, width: int) -> Table:
    """Fold the cells of a table in a terminal of fewer than 80 columns, which would cut off names and numbers."""
    if width < 80:
        for column in layout.columns:
            column.no_wrap, column.overflow, column.min_width = False, "fold", None
    return layout


def lens_table(table: Mapping[str, Any]) -> Table:
    """Lay out the predicted changes of entropy of all rules on one batch; the data has more than fits a terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    def milli(value: float | None) -> str:
        return "—" if value is None else f"{1000 * value:+.1f}"

    def estimate(numbers: Mapping[str, float]) -> str:
        return f"{milli(numbers['value'])}\n\\[{milli(numbers['low'])}, {milli(numbers['high'])}]"

    shares = " / ".join(f"{table['shares'][f'q{q}']:.1%}" for q in (1, 2, 3, 4))
    layout = Table(
        title=f"predicted change of mean entropy, 0.001 nats, step {table['step_size']:g}",
        caption=f"{table['tokens']:,} tokens, {table['clusters']} {table['cluster_kind']} resampled "
        f"{table['resamples']} times (95 %), mean entropy {table['entropy']:.4f}, Q1 to Q4 {shares}",
        padding=(0, 1, 0, 0),
        box=SIMPLE_HEAD,
    )
    layout.add_column("rule", overflow="fold", min_width=14)
    for name in ("total", "vs none", "Q1", "Q2", "Q3", "Q4", "drop", "random"):
        layout.add_column(name, justify="right", no_wrap=True)
    for row in table["rows"]:
        quadrants = [milli(row["quadrants"][f"q{q}"]) for q in (1, 2, 3, 4)]
        cells = [escape(row["rule"]), estimate(row["total"]), milli(row["against_none"]["value"]), *quadrants]
        layout.add_row(*cells, f"{row['dropped_share']:.1%}", milli(row["random_total"]))
    return layout


def ledger_table(summary: Mapping[str, Any]) -> Table:
    """Lay out a run's ledger: entropy at the start, the parts of its change, entropy at the end."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from entropy_theory.report.figures.ledger import shown_parts

    table = Table(title="mean entropy on the policy's own contexts (nats)", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("part")
    table.add_column("nats", justify="right", no_wrap=True)
    table.add_row(f"start, step {summary['first_step']}", f"{summary['start']:.4f}", end_section=True)
    for label, value, error, _ in shown_parts(summary):
        table.add_row(label, f"{value:+.4f}" + ("" if error is None else f" ± {error:.4f}"))
    table.add_section()
    table.add_row(f"end, step {summary['last_step']}", f"{summary['end']:.4f}")
    split, finished = summary["split_batches"], summary["batches"] - 1
    table.caption = f"{summary['batches']} generation batch{'es' if finished else ''}"
    table.caption += f", the updates on {split} of {finished} split" if 0 < split < finished else ""
    table.caption += "" if summary["remainder_se"] is None else "; ±: one standard error over prompt groups"
    table.caption += f"; closing error {summary['closing_error']:.0e}"
    return table


def influence_table(table: Mapping[str, Any]) -> Table:
    """Lay out the predicted changes of mean entropy of all rules by S_c and by D, per unit of learning rate."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    def signed(value: float) -> str:
        return f"{value:+.2g}"

    def of_none(value: float, against: float) -> str:
        none = value - against
        return f"{value / none:.0%}" if none else "—"

    def estimate(numbers: Mapping[str, float] | None, scale: float = 1.0) -> str:
        if numbers is None:
            return "—"
        value, low, high = (signed(numbers[name] * scale) for name in ("value", "low", "high"))
        return f"{value}\n\\[{low}, {high}]"

    layout = Table(
        title=f"predicted change of mean entropy, nats, learning rate {table['step_size']:g}",
        caption="S_c: the tabular theory, as if no two positions shared a weight. D: through the shared weights, "
        "exact to first order for a plain gradient step. Their scales differ: compare signs, and how much of the "
        "effect without control a rule leaves. A rule with an entropy term has no D here.",
        padding=(0, 1, 0, 0),
        box=SIMPLE_HEAD,
    )
    layout.add_column("rule", overflow="fold", min_width=14)
    for name in ("by S_c", "of none", "by D", "of none"):
        layout.add_column(name, justify="right", no_wrap=True)
    for row in table["rows"]:
        cells = [estimate(row["total"], 1 / table["tokens"]), estimate(row["influence"])]
        shares = [
            "—" if total is None else of_none(total["value"], against["value"])
            for total, against in (
                (row["total"], row["against_none"]),
                (row["influence"], row["influence_against_none"]),
            )
        ]
        layout.add_row(escape(row["rule"]), cells[0], shares[0], cells[1], shares[1])
    return layout


def audit_table(result: Mapping[str, Any]) -> Table:
    """Lay out an audit: for each optimizer, how predicted changes of entropy agree with realised ones."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from entropy_theory.report.figures.audit import ARMS, PREDICTIONS

    names = PREDICTIONS | {"token_2": "own token, 2nd order", "context_2": "own context, 2nd order"}
    table = Table(title="predicted against realised ΔH, position by position", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("prediction", max_width=16)
    for name in ("sign right", "slope", "R², fitted", "actual", "rank corr."):
        table.add_column(name, justify="right", no_wrap=True)
    for arm, measured in result["arms"].items():
        table.add_row(f"[bold]{ARMS.get(arm, arm)}[/]")
        for name in ("token", "token_2", "context", "context_2", "parameters"):
            row = measured["predictors"].get(name)
            if row is None:
                continue
            table.add_row(
                names[name],
                _estimate_cell(row["sign_agreement"], ".0%"),
                _estimate_cell(row["slope"], ".2g", interval=False),
                _estimate_cell(row["r2_fitted"], ".2f"),
                _estimate_cell(row["r2_actual"], ".2f", interval=False),
                _estimate_cell(row["rank_correlation"], ".2f"),
                end_section=name == "parameters",
            )
    positions = ", ".join(f"{ARMS.get(arm, arm)} {measured['positions']:,}" for arm, measured in result["arms"].items())
    table.caption = (
        f"positions: {positions}; 95 % intervals resample steps and prompt groups; slope: of the realised change on "
        "the predicted one at the actual step size, the learning rate of SGD or the multiple of the gradient that is "
        "nearest to AdamW's step; actual: R² at that step; 2nd orders are at the fitted one"
    )
    return table


def audit_tokens_table(result: Mapping[str, Any]) -> Table:
    """Lay out the tokens' view of an audit: for each optimizer, how −S_c agrees with a token's influence."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from entropy_theory.report.figures.audit import ARMS

    table = Table(title="tabular −S_c against influence D, token by token", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("influence on", max_width=16)
    for name in ("tokens", "Pearson", "Spearman", "same sign", "strongest 3 %"):
        table.add_column(name, justify="right", no_wrap=True)
    for arm, measured in result["arms"].items():
        table.add_row(f"[bold]{ARMS.get(arm, arm)}[/]")
        for over, label in (("same", "own contexts"), ("crossed", "crossed contexts")):
            for kind, words in (("plain", ""), ("weighted", ", × g")):
                if measured["tokens"][over] is not None:
                    row = measured["tokens"][over][kind]["overall"]
                    forms = {"pearson": ".2f", "spearman": ".2f", "sign_agreement": ".0%", "strongest_shared": ".0%"}
                    cells = [_estimate_cell(row[name], form) for name, form in forms.items()]
                    table.add_row(label + words, f"{row['tokens']:,}", *cells)
        table.add_section()
    table.caption = (
        "influence: what a token does to mean entropy, exactly to first order, on the batch's own contexts and on "
        "those of the other half of the prompt groups; × g: −g S_c against g D; strongest: how many of the 3 % of "
        "tokens with the largest influence are among those with the largest S_c; correlations are within steps"
    )
    return table


def audit_means_table(result: Mapping[str, Any]) -> Table:
    """Lay out the mean entropy of an audit's steps: predicted, first order and realised; fixed contexts and shift."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="change of mean entropy, step by step", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("step", no_wrap=True)
    columns = {"mean_token": "tabular", "first_order_now": "now", "first_order_momentum": "momentum"}
    if any(row["first_order_decay"] for row in result["steps"]):
        columns["first_order_decay"] = "decay"
    columns |= {"mean_parameters": "in all", "mean_realised": "real"}
    for name in (*columns.values(), "fixed", "shift", "ESS"):
        table.add_column(name, justify="right", no_wrap=True)

    for arm in result["arms"]:
        rows = [row for row in result["steps"] if row["arm"] == arm]
        power = math.floor(math.log10(max(abs(row["mean_realised"]) for row in rows) or 1.0))
        table.add_row(f"[bold]{escape(arm)}[/]\n10^{power} nats")
        for row in rows:
            in_unit = {name: value / 10**power for name, value in row.items() if isinstance(value, float)}
            cells = [f"{in_unit[name]:{'.0e' if name == 'mean_token' else '.2f'}}" for name in columns]
            for part in ("fixed", "shift"):
                error = in_unit.get(f"held_out_{part}_error")
                cells.append(f"{in_unit[f'held_out_{part}']:.2f}" + ("" if error is None else f"\n±{error:.2f}"))
            share = row["held_out_effective_sample_size"] / row["held_out_tokens"]
            table.add_row(f"{row['step']}, seed {row['seed']}", *cells, f"{share:.0%}")
        table.add_section()
    table.caption = (
        "tabular: mean of −η A S_c of the positions' own tokens; first order in the weights: this gradient (now), "
        "momentum, weight decay, in all; real: realised on the batch; in rollouts of other prompts, reweighted: the "
        "change at fixed contexts and the shift of contexts, ± 1 standard error, with the effective sample size as a "
        "share of the tokens"
    )
    return table


def _estimate_cell(measured: Mapping[str, float] | None, form: str, interval: bool = True) -> str:
    if measured is None:
        return "—"
    value = format(measured["value"], form)
    return f"{value}\n\\[{measured['low']:{form}}, {measured['high']:{form}}]" if interval else value


def _outcome(report: Mapping[str, Any]) -> str:
    checks = [check for result in report["results"] for check in result["checks"]]
    failed = sum(not check["passed"] for check in checks)
    counts = ((len(report["results"]), "statement"), (len(checks), "check"))
    counted = ", ".join(f"{number} {noun}{'' if number == 1 else 's'}" for number, noun in counts)
    return f"{counted}, {f'{failed} failed' if failed else 'all passed'}, {report['seconds']:.1f} s"
