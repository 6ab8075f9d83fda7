"""Size and speed of the inspect page at 2,000 completions of 300 tokens.

    python benchmarks/inspect_page.py

The statistics are those of random policies over 32 tokens, laid over made-up words: only their number and spread matter
here. Where Playwright and a Chromium are there (extra browser), the page is opened, and the rule and the threshold are
switched.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from entropy_theory import records
from entropy_theory.control import lens, rule
from entropy_theory.control.thresholds import scan_threshold
from entropy_theory.inspection.inspect import RULES, InspectConfig, Inspection, RuleView, token_batch
from entropy_theory.inspection.page_data import page_data
from entropy_theory.inspection.rollouts import Rollout, Rollouts, advantages_of
from entropy_theory.inspection.tokens import Tokenised
from entropy_theory.program import run_script
from entropy_theory.report.pages.inspect import save_inspect_page
from entropy_theory.vocab import token_statistics
from entropy_theory.vocab.statistics import FIELDS, SECOND_ORDER_FIELDS

_SWITCH = """async () => {
  const drawn = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)));
  const rule = document.getElementById("rule"), dial = document.getElementById("threshold"), out = {};
  let start = performance.now();
  rule.selectedIndex = 1; rule.dispatchEvent(new Event("change")); await drawn();
  out.rule = performance.now() - start; start = performance.now();
  dial.value = 3; dial.dispatchEvent(new Event("input")); await drawn();
  out.threshold = performance.now() - start; start = performance.now();
  document.getElementById("next").click(); await drawn();
  out.page = performance.now() - start;
  return out;
}"""


@dataclass(frozen=True)
class PageBenchmark:
    """Write a large page and open it.

    Attributes:
        completions: Their number.
        length: Tokens of each.
        chromium: The browser; empty: the page is not opened.
        out: The record; the page is beside it.
    """

    completions: int = 2000
    length: int = 300
    chromium: str = shutil.which("chromium") or ""
    out: Path = Path("runs/inspect_page.json")


def made_up(config: PageBenchmark) -> Inspection:
    """Rollouts of the asked size."""
    draws, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    shape = (config.completions, config.length)
    alphabet = list("abcdefghijklmnopqrstuvwxyz")
    words = [" " + "".join(draws.choice(alphabet, draws.integers(2, 9))) for _ in range(8000)]
    ids = draws.zipf(1.3, size=shape) % len(words)
    logits = torch.randn(ids.size, 32, generator=generator) * 6 * torch.rand(ids.size, 1, generator=generator)
    tokens = torch.multinomial(torch.softmax(logits, -1), 1, generator=generator).squeeze(-1)
    statistics = token_statistics(logits, tokens, second_order=True)
    items = tuple(
        Rollout(f"Problem {i // 8}: find x", "", float(draws.random() < 0.5), str(i // 8), None, False, None, None, "")
        for i in range(config.completions)
    )
    rollouts = Rollouts(items, "made-up.jsonl", "group")
    sequences = [Tokenised((1,), tuple(row.tolist()), tuple(words[i] for i in row)) for row in ids]
    measured = {name: getattr(statistics, name).numpy() for name in (*FIELDS, *SECOND_ORDER_FIELDS)}
    batch = token_batch(rollouts, sequences, measured, advantages_of(rollouts)[0])
    views = []
    for candidate in map(rule, RULES):
        output = candidate.apply(batch, generator=torch.Generator().manual_seed(0))
        scan = scan_threshold(candidate, batch) if candidate.threshold_parameter else None
        views.append(RuleView(candidate, output, scan))
    asked = InspectConfig(Path("made-up.jsonl"), "made-up", out=config.out.with_suffix(".html"))
    table = lens(batch, None, resamples=200).to_dict()
    return Inspection(asked, rollouts, sequences, batch, tuple(views), table, frozenset(), 1.0, (), ())


def main(config: PageBenchmark) -> None:
    """Measure and write the record."""
    start = time.monotonic()
    inspection = made_up(config)
    result: dict[str, Any] = {"rules": len(inspection.rules), "tokens": inspection.lens["tokens"]}
    result["seconds_rules_and_lens"] = round(time.monotonic() - start, 1)
    start = time.monotonic()
    result["megabytes"] = round(save_inspect_page(page_data(inspection), inspection.config.out) / 1e6, 1)
    result["seconds_write"] = round(time.monotonic() - start, 1)
    if config.chromium:
        from playwright.sync_api import sync_playwright

        with sync_playwright() as started:
            browser = started.chromium.launch(executable_path=config.chromium, args=["--no-sandbox"])
            result["browser"] = browser.version
            page = browser.new_page(viewport={"width": 1300, "height": 900})
            start = time.monotonic()
            page.goto(inspection.config.out.resolve().as_uri())
            page.wait_for_selector("html[data-ready]", timeout=120_000)
            result["seconds_to_open"] = round(time.monotonic() - start, 2)
            result["milliseconds"] = {name: round(value) for name, value in page.evaluate(_SWITCH).items()}
            browser.close()
    records.write_json(config.out, {"result": result, "configuration": config, "environment": records.environment()})
    for name, value in result.items():
        print(f"{name.replace('_', ' ')}: {value}")


if __name__ == "__main__":
    run_script(main, PageBenchmark)
