"""Tables of measured times in the documentation are those of their records."""

from __future__ import annotations

import re

from quoted_records import ROOT, whole_record


def test_the_simulator() -> None:
    text = (ROOT / "docs" / "howto" / "simulate.md").read_text()
    tables = whole_record("simulator_cpu", "benchmarks")["tables"]
    rows = re.findall(r"^\| ([\d,]+) × ([\d,]+), (?:`(.*?)`, (\d+)% dropped|none) \| (.*) \|$", text, re.MULTILINE)
    assert len(rows) == len(tables) == 6
    for (policies, size, rule, dropped, cells), table in zip(rows, tables, strict=True):
        assert [int(policies.replace(",", "")), int(size.replace(",", ""))] == table["shape"]
        assert (rule or "none", int(dropped or 0)) == (table["rule"], round(100 * table["dropped_share"]))
        _, exponential, _, before, after, _ = (row["processor_microseconds"] for row in table["rows"].values())
        times = [f"{value:,.0f}" if value >= 100 else f"{value:.2f}" for value in (exponential, before, after)]
        assert cells.startswith(
            f"{times[0]} | {times[1]} ({before / exponential:.0f}×) | {times[2]} (**{after / exponential:.1f}×**) | "
            f"{1e6 / before:,.0f} → {1e6 / after:,.0f} | "
        )
        if not cells.endswith("stay on one"):
            floor = table["speed_up_of_threads_in_exponentials"]
            assert cells.endswith(f"{table['speed_up_of_threads']:.2f} times as fast ({floor:.2f})")
    assert re.search(r"in more than\s+nine tenths of the policies", text)
    assert all(table["moved_whole"] > 0.9 for table in tables if table["rule"] != "none")


def test_the_waiting_times() -> None:
    text, seconds = (ROOT / "docs" / "commands.md").read_text(), whole_record("waiting_times", "benchmarks")["seconds"]
    rows = re.findall(r"^\| (?:floor: )?`(.*?)` \| ([\d.]+) \| ([\d.]+) \|$", text, re.MULTILINE)
    assert len(rows) == 11
    for name, now, before in rows:
        assert (now, before) == (f"{seconds[name]['now']:.2f}", f"{seconds[name]['before']:.2f}")
