"""The table of `trainer_overhead.py`: what each kind of control costs, and what it may cost."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE
from rich.table import Table

PLAIN = "plain TRL again"  # a measurement of nothing: how far off this benchmark is
FORWARD = "plain TRL and a forward"  # what no scoring of its own can do without
BAR = {"old": 0.03, "one-pass": 0.15}  # of the time of a plain step; that of `extra` is measured
REAL_BAR = {"one-pass": 0.01}  # the same with smollm2, whose step is long


def memory_words(memory: dict[str, int]) -> str:
    """The controlled peak against the plain ones."""
    words = f"{memory['controlled'] / memory['plain'] - 1:+.1%} of {memory['plain'] / 1e6:.0f} MB"
    beside = memory.get("plain beside the loops")
    return words if beside is None else f"{words}; {memory['controlled'] / beside - 1:+.1%} beside the loops"


def bar_of(row: dict[str, Any], rows: list[dict[str, Any]]) -> float | None:
    """What control may cost; in `extra`, a bare forward and what the benchmark cannot tell, once both are measured."""
    if row["rule"] in (PLAIN, FORWARD):
        return None
    if row["setting"] != "extra":
        return (REAL_BAR if row["model"] == "smollm2" else BAR).get(row["setting"])
    floors = {other["rule"]: other["wall"] for other in rows if other["model"] == row["model"]}
    if PLAIN not in floors or FORWARD not in floors:
        return None
    overhead: float = floors[FORWARD]["overhead"]
    return overhead + max(map(abs, floors[PLAIN]["interval"]))


def table_of(rows: list[dict[str, Any]]) -> Table:
    """The measurements as a table: medians of the paired differences, with their intervals; marked above the bar."""
    table = Table(title="overhead over plain TRL per optimizer step", box=SIMPLE)
    for name in ("model", "setting", "rule", "plain s", "overhead", "95 %", "cpu time", "bar", "peak memory"):
        table.add_column(name, justify="left" if name in ("model", "setting", "rule") else "right")
    for row in rows:
        wall, process, memory = row["wall"], row["process"], row.get("memory")
        bar = bar_of(row, rows)
        above = bar is not None and wall["overhead"] > bar
        table.add_row(
            row["model"],
            row["setting"],
            row["rule"],
            f"{wall['plain']:.3f}",
            f"{wall['overhead']:+.1%}",
            "{:+.1%} … {:+.1%}".format(*wall["interval"]),
            f"{process['overhead']:+.1%}",
            "" if bar is None else f"≤ {bar:.1%}{', ABOVE' if above else ''}",
            "" if memory is None else memory_words(memory),
            style="bold red" if above else None,
        )
    return table
