"""The inspect page in a real browser: what it shows is what Python computes, and what it is given stays text."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from inspect_rollouts import RULES, rollout_lines

from entropy_theory import cli
from entropy_theory.control import lens, rule
from entropy_theory.inspection.inspect import Inspection, RuleView, effects
from entropy_theory.inspection.page_data import page_data
from entropy_theory.report.pages.inspect import LEVELS, save_inspect_page

playwright = pytest.importorskip("playwright.sync_api", reason="the extra browser is not installed")
pytest.importorskip("transformers", reason="the extra train is not installed")

CHROMIUM = os.environ.get("CHROMIUM") or next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path (or in $CHROMIUM)")


@pytest.fixture(scope="module")
def address(inspection: Inspection, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "page.html"
    save_inspect_page(page_data(inspection), path)
    return path.as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])  # root has no sandbox
        yield opened
        opened.close()


class Page:
    """An opened page, and everything that it complained about or asked for."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1300, "height": 900}, **options})
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address)
        self.page.wait_for_selector("html[data-ready]", timeout=30_000)

    def choose(self, spec: str, setting: int | None = None) -> None:
        self.page.select_option("#rule", spec)
        if setting is not None:
            self.page.eval_on_selector(
                "#threshold", "(dial, k) => { dial.value = k; dial.dispatchEvent(new Event('input')); }", setting
            )
        self.page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)))")

    def value(self, selector: str) -> float:
        return float(self.page.get_attribute(selector, "data-value"))

    def classes(self) -> list[list[str]]:
        return self.page.eval_on_selector_all("#list .tok", "nodes => nodes.map((n) => [...n.classList])")

    def focused(self) -> str:
        return self.page.evaluate("document.activeElement.id")


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Page]:
    opened = Page(browser, address)
    yield opened
    assert opened.complaints == []
    assert opened.requests == [address]  # nothing but the file itself
    opened.context.close()


def at(view: RuleView, inspection: Inspection, setting: int | None) -> RuleView:
    """The rule itself at a setting of its threshold."""
    if setting is None or view.scan is None:
        return view
    changed = replace(view.rule, **{view.scan.parameter: view.scan.values[setting]})
    output = changed.apply(inspection.batch, generator=torch.Generator().manual_seed(0))
    return replace(view, rule=changed, output=output)


def shown(inspection: Inspection, count: int) -> torch.Tensor:
    """The tokens on the first page: those of the first completions, as many as it holds."""
    mask = inspection.batch.completion_mask.clone()
    mask[count:] = False
    return mask


@pytest.mark.parametrize("spec", ["none", *RULES])
def test_the_switch_shows_what_the_rule_does(page: Page, inspection: Inspection, spec: str) -> None:
    """Slope, quadrants, dropped tokens, colours and sums, at the rule's own setting and at others."""
    batch = inspection.batch
    view = next((view for view in inspection.rules if str(view.rule) == spec), None)
    settings = [None] if view is None or view.scan is None else [None, 0, view.scan.own // 2, len(view.scan.values) - 1]
    count = page.page.locator(".completion").count()
    mask = shown(inspection, count)
    sizes = effects(None, batch).total[batch.completion_mask].abs().numpy()
    cap = float(np.quantile(sizes[sizes > 0], 0.98))
    for setting in settings:
        page.choose(spec, setting)
        now = None if view is None else at(view, inspection, setting)
        one = rule("none") if now is None else now.rule
        row = lens(batch, [one], resamples=1).rows[-1]
        assert page.value("#slope") == pytest.approx(row.total.value, abs=1e-12)
        for q in ("q1", "q2", "q3", "q4"):
            assert page.value(f"#{q} .big") == pytest.approx(row.quadrants[q], abs=1e-12)
        expected = effects(now, batch).total
        classes = page.classes()
        assert len(classes) == int(mask.sum())
        kept = batch.completion_mask if now is None or now.output.keep_mask is None else now.output.keep_mask
        assert ["dropped" in names for names in classes] == (~kept)[mask].tolist()
        quadrants = batch.quadrants()[mask].tolist()
        wrong = 0
        for names, value, quadrant in zip(classes, expected[mask].tolist(), quadrants, strict=True):
            assert ("none" if quadrant == 0 else f"q{quadrant}") in names
            level = LEVELS * math.sqrt(abs(value) / cap)
            if abs(level % 1 - 0.5) < 2e-3:
                continue  # on the edge of two shades: the page has 12 bits of the value
            step = min(LEVELS, round(level))
            colour = {name for name in names if name[0] in "fr" and name[1:].isdigit()}
            wrong += colour != ({f"{'f' if value < 0 else 'r'}{step}"} if step else set())
        assert wrong == 0
        if now is not None:
            sums = page.page.eval_on_selector_all(".with-rule", "nodes => nodes.map((n) => Number(n.dataset.value))")
            np.testing.assert_allclose(sums, expected[:count].sum(dim=1), rtol=2e-3, atol=2e-4)
        else:
            assert page.page.locator("#dial").is_hidden()


def test_movers_by_type_and_position(page: Page, inspection: Inspection) -> None:
    page.choose("entropy-flow")
    batch, view = inspection.batch, inspection.rules[5]
    mask = batch.completion_mask
    values = effects(view, batch).total[mask].numpy() / int(view.output.denominator)
    pieces = np.array([piece for one in inspection.sequences for piece in one.pieces])
    sums = {piece: values[pieces == piece].sum() for piece in set(pieces.tolist())}
    most = max(sums.values())
    top = page.page.locator("#risers tbody tr").first
    assert float(top.locator("td[data-value]").get_attribute("data-value")) == pytest.approx(most, rel=1e-3)
    least = page.page.locator("#fallers tbody tr").first.locator("td[data-value]")
    assert float(least.get_attribute("data-value")) == pytest.approx(min(sums.values()), rel=1e-3)
    positions = mask.nonzero()[:, 1].numpy()
    width = math.ceil((positions.max() + 1) / 60)
    numbers = "rows => rows.map((r) => [...r.querySelectorAll('td')].map((d) => Number(d.dataset.value)))"
    rows = page.page.eval_on_selector_all(
        "#positions-table tbody tr",
        numbers,
    )
    for place, (fall, rise, net) in enumerate(rows):
        inside = positions // width == place
        assert fall == pytest.approx(values[inside & (values < 0)].sum(), rel=1e-3, abs=1e-9)
        assert rise == pytest.approx(values[inside & (values > 0)].sum(), rel=1e-3, abs=1e-9)
        assert net == pytest.approx(fall + rise, abs=1e-12)
    assert page.page.locator("#positions rect.rise").count() > 5


def test_hostile_text_stays_text(page: Page) -> None:
    assert page.page.locator("#list img, #list script, #list b:not(h3 b), .movers img").count() == 0
    assert page.page.evaluate("document.scripts.length") == 3
    texts = page.page.eval_on_selector_all(".completion .text", "nodes => nodes.map((n) => n.textContent)")
    marks = {"\u2028": "⟨U+2028⟩", "\u202e": "⟨U+202E⟩", "\u202c": "⟨U+202C⟩", "\t": "⇥\t", "\n": "↵\n"}
    for text, line in zip(texts, rollout_lines(), strict=False):
        expected = "".join(marks.get(c, c) for c in str(line["completion"])) + "<eos>"
        assert text.replace("▫", "") == expected  # ▫ marks the further tokens of one character
    page.page.click("#next")
    prompts = page.page.eval_on_selector_all(".prompt", "nodes => nodes.map((n) => n.textContent)")
    assert "</script><img src=x onerror=alert(2)> 4" in prompts


def test_a_script_that_gets_in_does_not_run(browser: Any, address: str, tmp_path: Path) -> None:
    """The content policy holds even against markup that someone pastes into the file."""
    text = Path(address.removeprefix("file://")).read_text()
    bad = tmp_path / "bad.html"
    bad.write_text(text.replace("<main>", "<main><script>window.ran = 1</script><img src=x onerror='window.ran = 2'>"))
    opened = Page(browser, bad.as_uri())
    assert opened.page.evaluate("window.ran") is None
    assert any("Content Security Policy" in complaint for complaint in opened.complaints)
    opened.context.close()


def test_everything_can_be_reached_with_the_keyboard(page: Page, inspection: Inspection) -> None:
    keys = page.page.keyboard
    keys.press("Tab")
    assert page.page.evaluate("document.activeElement.textContent") == "Skip to the completions"
    keys.press("Tab")
    assert page.focused() == "rule"
    page.choose("clip-b(mu=0.5)")
    keys.press("Tab")
    assert page.focused() == "threshold"
    before = page.page.text_content("#setting")
    keys.press("ArrowLeft")
    assert page.page.text_content("#setting") != before
    for _ in range(12):
        keys.press("Tab")
        if page.focused().startswith("t") and page.focused()[1:].isdigit():
            break
    lengths = [len(one.ids) for one in inspection.sequences]
    assert page.focused() == "t0"  # one stop for all tokens
    for key, place in (
        ("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", lengths[0] - 1), ("ArrowRight", lengths[0]),
        ("ArrowDown", lengths[0] + lengths[1]), ("ArrowUp", lengths[0]), ("ArrowLeft", lengths[0] - 1), ("Home", 0),
    ):  # fmt: skip
        keys.press(key)
        assert page.focused() == f"t{place}", key
        assert page.page.locator("#list .tok[tabindex='0']").count() == 1
    keys.press("ArrowUp")  # there is nothing above
    assert page.focused() == "t0"
    card = page.page.inner_text("#card")
    batch = inspection.batch
    assert "Token 1 of" in card
    assert f"{float(batch.log_probs[0, 0].exp()):.3g}" == page.page.text_content("#card-p")
    assert f"{float(batch.entropy[0, 0]):.4g}" == page.page.text_content("#card-H")
    assert all(spec in card for spec in RULES)
    outline = page.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    keys.press("Enter")
    assert page.focused() == "card"
    keys.press("Escape")
    assert page.focused() == "t0"


def test_colour_is_never_the_only_sign(page: Page, inspection: Inspection) -> None:
    page.choose("high-entropy(share=0.5)")
    labels = page.page.eval_on_selector_all("#list .tok", "nodes => nodes.map((n) => n.getAttribute('aria-label'))")
    mask = shown(inspection, page.page.locator(".completion").count())
    kept = inspection.rules[2].output.keep_mask[mask].tolist()
    words = {
        0: "No effect",
        1: "Q1: A > 0, likely",
        2: "Q2: A > 0, unlikely",
        3: "Q3: A < 0, likely",
        4: "Q4: A < 0, unlikely",
    }
    for label, quadrant, keep in zip(labels, inspection.batch.quadrants()[mask].tolist(), kept, strict=True):
        assert words[quadrant] in label
        assert ("dropped" in label) is not keep
    lists = page.page.locator(".completion [role=listbox]")
    assert lists.first.get_attribute("aria-label").startswith("Completion #1, group 1, reward")
    sides = page.page.evaluate(
        """() => ["q1", "q2", "q3", "q4"].map((q) => {
        const s = getComputedStyle(document.querySelector(`#marks .${q}`));
        return [s.borderTopStyle, s.borderBottomStyle, s.borderTopColor, s.borderBottomColor]; })"""
    )
    clear = "rgba(0, 0, 0, 0)"
    assert [(s[0] if s[2] != clear else "", s[1] if s[3] != clear else "") for s in sides] == [
        ("", "solid"), ("dotted", ""), ("solid", ""), ("", "dotted"),
    ]  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_shade_is_legible_and_its_own(browser: Any, address: str, scheme: str) -> None:
    """WCAG contrast of at least 4.5 between text and every background of the two scales, which are all different."""
    opened = Page(browser, address, color_scheme=scheme)
    shades = opened.page.evaluate(
        """() => { const canvas = document.createElement("canvas");
        const c = canvas.getContext("2d", { willReadFrequently: true });
        const mix = (...colours) => { for (const x of colours) { c.fillStyle = x; c.fillRect(0, 0, 1, 1); }
          return [...c.getImageData(0, 0, 1, 1).data].slice(0, 3); };
        const body = getComputedStyle(document.body);
        const swatches = [...document.querySelectorAll("#scale .swatch")];
        return { ink: mix(body.color), paper: mix(body.backgroundColor),
          swatches: swatches.map((n) => mix(body.backgroundColor, getComputedStyle(n).backgroundColor)) }; }"""
    )
    assert opened.complaints == []

    def luminance(colour: list[int]) -> float:
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in (v / 255 for v in colour)]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    paper, ink = luminance(shades["paper"]), luminance(shades["ink"])
    assert (paper > ink) == (scheme == "light")
    assert len({tuple(s) for s in shades["swatches"]}) == 2 * LEVELS + 1
    for swatch in shades["swatches"]:
        low, high = sorted([luminance(swatch), ink])
        assert (high + 0.05) / (low + 0.05) >= 4.5, swatch
    opened.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_passes_the_accessibility_rules_of_axe(browser: Any, address: str, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="the extra browser is not installed")
    opened = Page(browser, address, color_scheme=scheme, bypass_csp=True)  # the checker is a script of its own
    opened.choose(RULES[0])
    opened.page.locator("#list .tok").nth(3).click()
    assert [v["id"] for v in axe.Axe().run(opened.page).response["violations"]] == []
    opened.context.close()


def test_a_narrow_window_needs_no_sideways_scrolling(browser: Any, address: str) -> None:
    opened = Page(browser, address, viewport={"width": 380, "height": 800})
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 380
    assert opened.page.locator("#card").is_hidden()
    opened.page.locator("#list .tok").nth(3).click()
    assert opened.page.locator("#card").is_visible()
    assert opened.complaints == []
    opened.context.close()


def test_order_filter_and_search(page: Page, inspection: Inspection) -> None:
    sums = effects(None, inspection.batch).total.sum(dim=1)
    page.page.select_option("#order", "falls")
    assert page.page.text_content(".completion h3 b") == f"#{int(sums.argmin()) + 1}"
    page.page.select_option("#order", "file")
    page.page.select_option("#which", "positive")
    positive = int((inspection.batch.advantages > 0).sum())
    assert f"{positive} completions" in page.page.text_content("#place")
    page.page.select_option("#which", "all")
    page.page.fill("#find", "<script>alert(1)")
    page.page.wait_for_selector("#place:text-is('6 completions')")  # one by itself, five by their prompt
    page.page.fill("#find", "no such text")
    page.page.wait_for_selector("text=No completion matches.")
    page.page.fill("#find", "")
    page.page.wait_for_selector("#place:text-is('page 1 of 2, 30 completions')")
    page.page.click("#next")
    assert "page 2 of 2" in page.page.text_content("#place")


def test_the_completions_of_a_run_of_the_demos_task(browser: Any, tiny_decoder: Path, tmp_path: Path) -> None:
    """From training to the opened page by the two commands of the documentation."""
    pytest.importorskip("trl", reason="the extra train is not installed")
    run, out = tmp_path / "run", tmp_path / "page.html"
    train = ["train", "--model", str(tiny_decoder), "--steps", "2", "--save-every", "1", "--log-completions"]
    assert cli.main([*train, "--out", str(run)]) == 0
    words = ["inspect", str(run), "--model", str(run / "trainer" / "checkpoint-1"), "--max-completion-length", "8"]
    assert cli.main([*words, "--out", str(out)]) == 0
    opened = Page(browser, out.as_uri())
    assert opened.complaints == []
    assert "256 completions" in opened.page.text_content("#place")
    assert opened.page.locator("#list.short .completion").count() == 60
    for rule_spec in opened.page.eval_on_selector_all("#rule option", "options => options.map((o) => o.value)"):
        opened.choose(rule_spec)
        row = opened.page.locator(f'.lens tr[data-rule="{rule_spec}"] td').first
        if row.count():  # rules that change nothing share a line below the table
            shown_there = 1000 * opened.value("#slope")
            assert float(row.text_content().replace("−", "-")) == pytest.approx(shown_there, abs=0.0051)
    assert opened.complaints == []
    opened.context.close()
