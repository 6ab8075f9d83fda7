"""The inspect page without a browser: its data are inert and exact to what it says, its totals those of the rules."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from inspect_rollouts import HOSTILE, RULES

from entropy_theory.control import lens, rule
from entropy_theory.inspection.inspect import Inspection, effects
from entropy_theory.inspection.page_data import page_data
from entropy_theory.report.pages import inspect

pytest.importorskip("transformers", reason="the extra train is not installed")


@pytest.fixture(scope="module")
def data(inspection: Inspection) -> dict[str, Any]:
    return page_data(inspection)


@pytest.fixture(scope="module")
def page(data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "page.html"
    assert inspect.save_inspect_page(data, path) == path.stat().st_size
    return path.read_text(encoding="utf-8")


def test_totals_at_every_setting_are_those_of_the_rule(inspection: Inspection, data: dict[str, Any]) -> None:
    """Added up from scores here, by the lens from the rule's own output there."""
    batch = inspection.batch
    for entry in data["payload"]["rules"]:
        if "values" not in entry:
            row = lens(batch, [entry["spec"]], resamples=1).rows[1]
            assert entry["totals"][0]["total"] == pytest.approx(row.total.value, abs=1e-12)
            continue
        for k in range(0, len(entry["values"]), 7):
            one = rule(entry["spec"])
            changed = replace(one, **{one.threshold_parameter: entry["values"][k]})
            row = lens(batch, [changed], resamples=1).rows[-1]
            found = entry["totals"][k]
            assert found["total"] == pytest.approx(row.total.value, abs=1e-12)
            assert found["dropped"] == round(row.dropped_share * inspection.lens["tokens"])
            for q in ("q1", "q2", "q3", "q4", "none"):
                assert found[q] == pytest.approx(row.quadrants[q], abs=1e-12)


def test_the_columns_hold_the_statistics(inspection: Inspection, data: dict[str, Any], page: str) -> None:
    payload = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])
    packed = re.search(r'<script type="text/plain" id="columns">(.*?)</script>', page, re.S)[1]
    raw = gzip.decompress(base64.b64decode(packed))
    column = {
        name: np.frombuffer(raw, dtype=f"<{kind}", count=length, offset=start)
        for name, kind, start, length in payload["columns"]
    }
    mask = inspection.batch.completion_mask
    for name, exact in (
        ("centered", inspection.batch.centered_scores()),
        ("log_prob", inspection.batch.log_probs),
        ("entropy", inspection.batch.entropy),
        ("baseline", inspection.batch.baseline),
    ):
        np.testing.assert_allclose(column[name], exact[mask], rtol=2**-13 * 1.001)  # half a unit of 12 bits
        assert (np.sign(column[name]) == np.sign(exact[mask].numpy())).all()
    assert column["quadrant"].tolist() == inspection.batch.quadrants()[mask].tolist()
    for number, view in enumerate(inspection.rules):
        if view.scan is not None:
            assert column[f"scores{number}"].tolist() == view.scan.scores[mask].tolist()
        elif f"coefficients{number}" in column:
            assert column[f"coefficients{number}"].tolist() == view.output.coefficients[mask].tolist()
        if f"extra{number}" in column:
            total = (
                -column[f"coefficients{number}"]
                if f"coefficients{number}" in column
                else -inspection.batch.token_advantages[mask].numpy()
            )
            np.testing.assert_allclose(
                total * column["centered"] + column[f"extra{number}"],
                effects(view, inspection.batch).total[mask],
                rtol=5e-3,
                atol=1e-6,
            )
    text = "".join(payload["types"][t]["text"] for t in column["type"][: column["starts"][1]])
    assert text == HOSTILE[0] + "<eos>"


def test_nothing_in_it_can_run_or_fetch(page: str) -> None:
    """Whatever the rollouts say: no markup of theirs, one script, known by its hash, no address outside the file."""
    for markup in ("<script>alert", "<img", "<!--", "<b>&lt;"):
        assert markup not in page
    opened = re.findall(r"<script([^>]*)>", page)
    assert opened == [' type="application/json" id="data"', ' type="text/plain" id="columns"', ""]
    assert page.count("</script>") == 3
    script = re.search(r"<script>(.*?)</script>", page, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = html.unescape(re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1])
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';")
    assert not re.findall(r'(?:href|src)="(?!#|data:)', page)
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script)


def test_json_survives_any_text() -> None:
    for text in (*HOSTILE, "\ud800", "]]>", "\\", '"', "\u2028\u2029", "<!--<script>"):
        found = str(inspect.inert_json({"x": text}))
        assert not re.search(r"[<>&\u2028\u2029]", found)
        assert json.loads(found) == {"x": text}
        found.encode("utf-8")
    with pytest.raises(ValueError, match="JSON compliant"):
        inspect.inert_json({"x": float("nan")})


def test_of_many_completions_whole_groups_are_drawn(inspection: Inspection) -> None:
    few = replace(inspection, config=replace(inspection.config, max_completions=9))
    data = page_data(few)
    shown = data["payload"]["completions"]
    groups = inspection.rollouts.group_ids
    assert 0 < len(shown) <= 9
    for group in {one["group"] for one in shown}:
        assert sum(one["group"] == group for one in shown) == (groups == group - 1).sum()
    assert (
        data["columns"]["starts"][-1]
        == len(data["columns"]["type"])
        == sum(len(inspection.sequences[one["number"] - 1].ids) for one in shown)
    )
    assert "Drawn below" in data["facts"]["notes"][-1]
    assert data["payload"]["none"] == page_data(inspection)["payload"]["none"]  # totals are over all


def test_the_same_data_are_the_same_page(data: dict[str, Any], page: str, tmp_path: Path) -> None:
    inspect.save_inspect_page(data, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page


def test_the_sentence_fits_the_numbers() -> None:
    def said(value: float, low: float, high: float) -> str:
        quadrants = {"q1": -0.1, "q2": 0.3, "q3": 0.1, "q4": -0.2, "none": 0.0}
        total = {"value": value, "low": low, "high": high}
        return inspect.verdict({"rows": [{"total": total, "quadrants": quadrants}]})

    assert "pushes mean entropy down" in said(-0.2, -0.3, -0.1)
    assert "most of it from Q4 (unlikely tokens, A < 0)" in said(-0.2, -0.3, -0.1)
    assert "pushes mean entropy up" in said(0.2, 0.1, 0.3)
    assert "most of it from Q2 (unlikely tokens, A > 0)" in said(0.2, 0.1, 0.3)
    assert "not clear" in said(0.2, -0.1, 0.3)
    assert "does not move" in said(0.0, 0.0, 0.0)


def test_rules_are_as_asked(inspection: Inspection) -> None:
    assert [str(view.rule) for view in inspection.rules] == list(RULES)
    assert torch.equal(
        effects(None, inspection.batch).total, effects(inspection.rules[-1], inspection.batch).total
    )  # ppo-clip at r = 1
