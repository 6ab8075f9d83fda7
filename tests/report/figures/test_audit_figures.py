"""The audit's figure, table and sentences, from the recorded audit of the demo's decoder."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from entropy_theory.report import figures, findings, tables
from entropy_theory.report.figures.audit import ARMS, PIECES, PREDICTIONS, audit_figure

RECORD = Path(__file__).parents[3] / "simulations" / "results" / "shared_parameters.json"


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    record = json.loads(RECORD.read_text())
    return {"arms": record["summary"]["arms"], "steps": [s for r in record["results"] for s in r["result"]["steps"]]}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_shows_every_arm_prediction_and_piece(
    recorded: dict[str, Any], theme: figures.Theme, tmp_path: Path
) -> None:
    figure = audit_figure(recorded, theme=theme)
    figures.save(figure, tmp_path / "audit.png", theme)
    assert (tmp_path / "audit.png").stat().st_size > 50_000
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert set(texts) == {*ARMS.values(), *PREDICTIONS.values()}
    pieces = figure.axes[3].get_legend().get_texts()
    assert [text.get_text() for text in pieces] == list(PIECES.values())
    widths = [bar.get_width() for bar in figure.axes[3].patches if bar.get_width()]
    # the pieces of an arm add up to one; "rest" is rounding and not drawn
    assert sum(widths) == pytest.approx(len(recorded["arms"]), abs=1e-3)


def test_one_arm_and_missing_estimates(recorded: dict[str, Any], tmp_path: Path) -> None:
    some = copy.deepcopy({"arms": {"adamw": recorded["arms"]["adamw"]}, "steps": recorded["steps"]})
    found = some["arms"]["adamw"]
    found["quadrants"]["q3"]["token"]["sign_agreement"] = None
    found["deciles"][0]["parameters"]["sign_agreement"] = None
    found["pieces"]["own"] = None
    figures.save(audit_figure(some), tmp_path / "audit.png")
    assert "none of the first-order change" in findings.audit(some)[0]
    found["predictors"]["token"]["sign_agreement"] = None
    assert findings.audit(some) == ["AdamW: no position had both a prediction and a change."]


def test_the_sentences_follow_the_numbers(recorded: dict[str, Any]) -> None:
    some = copy.deepcopy(recorded)
    for found in some["arms"].values():
        found["predictors"]["token"]["sign_agreement"] = {"value": 0.9, "low": 0.8, "high": 0.95}
    assert all("at 90% [80%, 95%] (R²" in sentence for sentence in findings.audit(some))
    for found in some["arms"].values():
        found["predictors"]["token"]["sign_agreement"] = {"value": 0.51, "low": 0.49, "high": 0.53}
    assert all("at 51% [49%, 53%], no better than chance" in sentence for sentence in findings.audit(some))


def test_the_table_fits_a_terminal(recorded: dict[str, Any]) -> None:
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(tables.audit_table(recorded))
    text = console.export_text()
    assert "…" not in text
    for arm, found in recorded["arms"].items():
        assert ARMS[arm].split(",")[0] in text
        assert f"{found['predictors']['parameters']['sign_agreement']['value']:.0%}" in text


def test_the_record_is_of_the_default_configuration() -> None:
    record = json.loads(RECORD.read_text())
    assert record["configuration"]["positions"] >= 256
    assert {"sgd", "adamw"} <= record["summary"]["arms"].keys()
    assert len(record["summary"]["findings"]) == len(record["summary"]["arms"])
    steps = [step for one in record["results"] for step in one["result"]["steps"]]
    assert max(step["sum_error"] for step in steps) < 1e-9
    assert max(step["output_error"] for step in steps) < 1e-9
    assert RECORD.stat().st_size < 400_000
