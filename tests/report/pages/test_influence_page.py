"""Influence on the inspect page: what Python computes, what the browser shows, and what a page without it lacks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from inspect_rollouts import HOSTILE

from entropy_theory.inspection.inspect import Inspection
from entropy_theory.inspection.page_data import DISAGREEMENTS, page_data
from entropy_theory.report.pages.inspect import LEVELS, save_inspect_page

pytest.importorskip("transformers", reason="the extra train is not installed")


@pytest.fixture(scope="module")
def data(influenced: Inspection) -> dict[str, Any]:
    return page_data(influenced)


@pytest.fixture(scope="module")
def path(data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    save_inspect_page(data, path)
    return path


def by_token(inspection: Inspection) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """g D and −g S_c/n of every token, float64, and its row."""
    batch, mask = inspection.batch, inspection.batch.completion_mask
    rows = mask.nonzero()[:, 0]
    g = batch.advantages[rows].double().numpy()
    n = len(rows)
    return (
        g * batch.influence[mask].double().numpy(),
        -g * batch.centered_scores()[mask].double().numpy() / n,
        rows.numpy(),
    )


def test_the_column_and_the_agreement_are_those_of_the_batch(influenced: Inspection, data: dict[str, Any]) -> None:
    batch, mask = influenced.batch, influenced.batch.completion_mask
    assert np.array_equal(data["columns"]["influence"], batch.influence[mask].numpy())
    moved, predicted, _ = by_token(influenced)
    facts = data["facts"]["influence"]
    x, y = -batch.centered_scores()[mask].double().numpy(), batch.influence[mask].double().numpy()
    assert facts["plain"]["pearson"] == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert facts["plain"]["sign"] == pytest.approx(np.mean(x * y > 0))
    moving = moved != 0
    assert facts["weighted"]["sign"] == pytest.approx(np.mean((moved * predicted > 0)[moving]))
    assert facts["moving"] == moving.sum()
    assert facts["total"] == pytest.approx(moved.sum() / len(moved))
    assert any("through all" in note and "forward-mode derivative" in note for note in data["facts"]["notes"])


def test_the_tokens_that_disagree_most_are_listed(influenced: Inspection, data: dict[str, Any]) -> None:
    moved, predicted, rows = by_token(influenced)
    listed = data["payload"]["influence"]["disagreements"]
    distances = [abs(entry["influence"] - entry["tabular"]) for entry in listed]
    opposite = np.sign(moved) * np.sign(predicted) < 0
    assert len(listed) == min(DISAGREEMENTS, opposite.sum()) > 3
    np.testing.assert_allclose(distances, np.sort(np.abs(moved - predicted)[opposite])[::-1][: len(listed)], rtol=1e-6)
    for entry in listed:
        sequence = influenced.sequences[entry["completion"] - 1]
        assert entry["text"] == sequence.pieces[entry["position"]]
        assert "".join(sequence.pieces[: entry["position"]]).endswith(entry["before"])
        place = np.flatnonzero(rows == entry["completion"] - 1)[entry["position"]]
        assert (entry["influence"], entry["tabular"]) == pytest.approx((moved[place], predicted[place]))


def test_a_page_without_influence_says_nothing_of_it(inspection: Inspection, tmp_path: Path) -> None:
    data = page_data(inspection)
    assert data["facts"]["influence"] is data["payload"]["influence"] is None
    save_inspect_page(data, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert 'id="by"' not in text
    assert 'id="influence"' not in text


def test_hostile_text_is_no_markup(path: Path) -> None:
    page = path.read_text(encoding="utf-8")
    for markup in ("<script>alert", "<img", "<!--", "<b>&lt;"):
        assert markup not in page
    assert page.count("</script>") == 3


def test_no_advantage_no_disagreement(influenced: Inspection, tmp_path: Path) -> None:
    """Without an advantage D still says which tokens could move entropy; with one token there is nothing to compare."""
    batch = influenced.batch
    still = replace(influenced, batch=replace(batch, advantages=torch.zeros_like(batch.advantages)))
    mask = torch.zeros_like(batch.completion_mask)
    mask[0, 0] = True
    rows = [
        replace(sequence, ids=sequence.ids[:1] * (not row), pieces=sequence.pieces[:1] * (not row))
        for row, sequence in enumerate(influenced.sequences)
    ]
    single = replace(influenced, batch=replace(batch, completion_mask=mask), sequences=rows, rules=())
    assert page_data(still)["facts"]["influence"]["weighted"]["sign"] is None
    assert page_data(still)["payload"]["influence"]["disagreements"] == []
    assert page_data(single)["facts"]["influence"]["weighted"]["pearson"] is None
    save_inspect_page(page_data(single), tmp_path / "single.html")
    assert page_data(still)["facts"]["influence"]["plain"]["pearson"] is not None
    save_inspect_page(page_data(still), tmp_path / "still.html")
    assert "every advantage or every influence is 0" in (tmp_path / "still.html").read_text(encoding="utf-8")


# -- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="the extra browser is not installed")
    from test_inspect_browser import CHROMIUM

    if CHROMIUM is None:
        pytest.skip("no Chromium on the path (or in $CHROMIUM)")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])  # root has no sandbox
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, path: Path) -> Iterator[Any]:
    from test_inspect_browser import Page

    opened = Page(browser, path.as_uri())
    yield opened
    assert opened.complaints == []
    assert opened.requests == [path.as_uri()]
    opened.context.close()


def test_the_switch_colours_by_influence(page: Any, influenced: Inspection) -> None:
    page.choose("high-entropy(share=0.5)")
    tabular = page.classes()
    page.page.select_option("#by", "influence")
    moved, _, rows = by_token(influenced)
    first = page.page.locator(".completion").count()
    kept = influenced.rules[2].output.keep_mask[influenced.batch.completion_mask].numpy()
    values = np.where(kept, moved, 0.0)[rows < first]
    cap = float(np.quantile(np.abs(moved)[moved != 0], 0.98))
    classes = page.classes()
    assert len(classes) == len(values)
    assert classes != tabular
    labels = page.page.eval_on_selector_all("#list .tok", "nodes => nodes.map((n) => n.getAttribute('aria-label'))")
    for names, label, value, whole in zip(classes, labels, values, kept[rows < first], strict=True):
        level = LEVELS * math.sqrt(abs(value) / cap)
        assert ("by D" in label) is bool(whole)
        if abs(level % 1 - 0.5) < 2e-3:
            continue  # on the edge of two shades: the page has 12 bits of the value
        step = min(LEVELS, round(level))
        colour = {name for name in names if name[0] in "fr" and name[1:].isdigit()}
        assert colour == ({f"{'f' if value < 0 else 'r'}{step}"} if step else set())
    sums = page.page.eval_on_selector_all(".with-rule", "nodes => nodes.map((n) => Number(n.dataset.value))")
    np.testing.assert_allclose(
        sums, np.bincount(rows[rows < first], values, first), rtol=2e-3, atol=2e-4 * np.abs(moved).max()
    )
    page.page.select_option("#order", "falls")
    totals = np.bincount(rows, moved, len(influenced.sequences))
    assert page.page.text_content(".completion h3 b") == f"#{int(totals.argmin()) + 1}"
    page.page.select_option("#by", "tabular")
    assert "by D" not in page.page.locator("#list .tok").first.get_attribute("aria-label")


def test_the_card_shows_both_and_the_list_leads_to_its_tokens(
    page: Any, influenced: Inspection, data: dict[str, Any]
) -> None:
    listed = data["payload"]["influence"]["disagreements"]
    numbers = page.page.eval_on_selector_all(
        "#disagreements tbody tr",
        "rows => rows.map((r) => [...r.querySelectorAll('[data-value]')].map((d) => Number(d.dataset.value)))",
    )
    assert numbers == [[entry["advantage"], entry["tabular"], entry["influence"]] for entry in listed]
    page.page.fill("#find", "no such text")
    page.page.wait_for_selector("text=No completion matches.")
    place = len(listed) - 1
    page.page.locator("#disagreements button").nth(place).click()
    entry = listed[place]
    start = int(data["columns"]["starts"][entry["completion"] - 1])
    assert page.focused() == f"t{start + entry['position']}"
    mask = influenced.batch.completion_mask
    D = float(influenced.batch.influence[mask][start + entry["position"]])
    tabular = entry["tabular"] / entry["advantage"]

    def shown(selector: str) -> float:
        return float(page.page.text_content(selector).replace("−", "-"))

    # three digits of a value with 12 bits; two below 1e-4
    assert shown("#card-D") == pytest.approx(D, rel=0.06 if abs(D) < 1e-4 else 6e-3)
    assert shown("#card-tabular") == pytest.approx(tabular, rel=0.06 if abs(tabular) < 1e-4 else 6e-3)
    assert shown("#card-tabular") * shown("#card-D") < 0
    assert "by the tabular theory" in page.page.text_content("#card-influence")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_passes_the_accessibility_rules_of_axe(browser: Any, path: Path, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="the extra browser is not installed")
    from test_inspect_browser import Page

    opened = Page(browser, path.as_uri(), color_scheme=scheme, bypass_csp=True)  # the checker is a script of its own
    opened.page.select_option("#by", "influence")
    opened.page.locator("#list .tok").nth(3).click()
    assert [v["id"] for v in axe.Axe().run(opened.page).response["violations"]] == []
    opened.context.close()


def test_a_narrow_window_needs_no_sideways_scrolling(browser: Any, path: Path) -> None:
    from test_inspect_browser import Page

    opened = Page(browser, path.as_uri(), viewport={"width": 380, "height": 800})
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 380
    assert opened.complaints == []
    opened.context.close()


def test_hostile_text_stays_text(page: Any, data: dict[str, Any]) -> None:
    assert page.page.locator("#disagreements img, #disagreements script, #disagreements b").count() == 0
    marks = {"\u2028": "⟨U+2028⟩", "\u202e": "⟨U+202E⟩", "\u202c": "⟨U+202C⟩"}
    texts = page.page.eval_on_selector_all("#disagreements .after", "nodes => nodes.map((n) => n.textContent)")
    expected = [entry["before"] for entry in data["payload"]["influence"]["disagreements"]]
    assert texts == ["".join(marks.get(c, c) for c in text) for text in expected]
    assert any(character in text for text in expected for character in "".join(HOSTILE) if character in "<>{")
