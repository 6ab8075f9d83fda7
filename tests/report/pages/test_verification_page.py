"""The page of the report stands alone, escapes what it is given, and links to the tests; the picture is drawn."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from entropy_theory.cli import main
from entropy_theory.report import figures
from entropy_theory.report.figures import theory
from entropy_theory.report.pages.page import mathml
from entropy_theory.report.pages.verification import save_verification_page
from entropy_theory.theory.verification import pictures, verify
from entropy_theory.theory.verification.catalogue import STATEMENTS
from entropy_theory.theory.verification.rays import sample_rays


@pytest.fixture(scope="module")
def report():
    return verify(only=["corollary-3.4", "one-sided-sign-theorem", "unimodal-rise"], budget="quick").to_dict()


@pytest.fixture
def verification_page(tmp_path):
    """Writes a report's page and gives its text."""

    def write(report):
        save_verification_page(report, tmp_path / "page.html")
        return (tmp_path / "page.html").read_text(encoding="utf-8")

    return write


class _Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.links, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("href", "src")]


def test_the_page_needs_no_network(report, verification_page):
    page = verification_page(report)
    parser = _Links()
    parser.feed(page)
    assert not {"script", "img", "iframe"} & set(parser.tags)
    assert not [link for link in parser.links if re.match(r"(?!data:)[a-z]+:|//", link)]
    assert "@import" not in page
    assert "url(" not in page


def test_every_statement_has_its_formula_its_evidence_and_its_test(report, verification_page):
    page = verification_page(report)
    for result in report["results"]:
        assert f'id="{result["identifier"]}"' in page
        for check in result["checks"]:
            assert check["test"] in page
            assert check["kind"] in page
    assert page.count("<math") >= len(report["results"])
    words = re.sub("<[^>]*>", " ", page).replace("proved by a kernel", "").replace("proved in Coq", "")
    assert not re.search(r"\bverified\b|\bproved\b", words)


@pytest.mark.parametrize("statement", STATEMENTS, ids=lambda statement: statement.identifier)
def test_every_formula_becomes_mathml(statement):
    text = mathml(statement.formula, display=True)
    assert text.startswith("<math")
    assert "\\" not in text  # a command that the converter does not know would be left as it is


def test_what_is_given_is_escaped(report, verification_page):
    broken = {**report, "results": [{**report["results"][0], "title": "<b>x</b>", "text": "a < b & e^{-H}"}]}
    page = verification_page(broken)
    assert "<b>x</b>" not in page
    assert "&lt;b&gt;x&lt;/b&gt;" in page
    assert "a &lt; b &amp; e<sup>-H</sup>" in page


def test_a_failure_is_seen(report, verification_page):
    check = {**report["results"][0]["checks"][0], "passed": False, "verdict": "not derived"}
    broken = {**report, "results": [{**report["results"][0], "passed": False, "checks": [check]}]}
    page = verification_page(broken)
    assert "1 failed" in page
    assert "✗" in page


def test_links_lead_from_the_page_to_the_tests(report, tmp_path):
    path = tmp_path / "deep" / "verification.html"
    save_verification_page(report, path)
    parser = _Links()
    parser.feed(path.read_text(encoding="utf-8"))
    tests = [link for link in parser.links if not link.startswith(("#", "data:"))]
    assert tests
    assert all((path.parent / link).resolve().is_file() for link in tests)


def test_the_picture_is_drawn_from_the_rays(tmp_path):
    outcomes = sample_rays(count=30)
    assert (outcomes.falls < 0).all()
    assert (outcomes.rises[:, 0] > 0).mean() > 0.9
    assert (outcomes.rises[:, -1] < 0).mean() > 0.9
    assert np.array_equal(outcomes.rises, sample_rays(count=30).rises)
    figures.save(theory.one_sided_sign_theorem(outcomes), tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_pictures_show_the_exact_change_under_its_bound():
    for ray in pictures.bounded_rays():
        assert (ray.change <= ray.bound + 1e-12).all()  # round-off where the bound is attained
        assert (ray.change[ray.score * ray.steps > 0] < 0).all()
    assert not any(np.allclose(ray.change, ray.bound) for ray in pictures.bounded_rays()[:2])


def test_pictures_mark_the_largest_entropy_of_the_pass_rate():
    for curve in pictures.pass_rate_curves():
        assert curve.rates[curve.entropy.argmax()] == pytest.approx(curve.peak, abs=1 / 200)  # the grid
        assert curve.entropy.max() <= curve.peak_entropy == pytest.approx(curve.entropy.max(), abs=1e-4)


def test_pictures_of_the_state_shift_have_both_signs():
    shift = pictures.shifted_contexts(count=50)
    for values, slope in ((shift.fixed, shift.fixed_slope), (shift.total, shift.total_slope)):
        assert np.gradient(values, shift.steps)[60] == pytest.approx(slope, abs=1e-3)  # second order of the grid
    assert shift.fixed.max() <= 0.0 < shift.total.max()
    assert (shift.fixed_slopes * shift.total_slopes < 0).any()


def test_a_statement_shows_its_picture_on_the_page(report, tmp_path):
    name = "one-sided-sign-theorem"
    save_verification_page(
        report, tmp_path / "page.html", {name: (theory.pass_rate_entropy, pictures.pass_rate_curves())}
    )
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    parser = _Links()
    parser.feed(page)
    assert parser.tags.count("img") == 1
    assert not [link for link in parser.links if re.match(r"(?!data:)[a-z]+:|//", link)]
    assert page.index(f'id="{name}"') < page.index("<img") < page.index('id="unimodal-rise"')


def test_the_command_writes_all_of_it(tmp_path, capsys):
    assert main(["verify", "--quick", "--only", "corollary-3.4", "--out", str(tmp_path / "out")]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "verification.json",
        "verification.html",
        *(f"{name}.png" for name in ("one_sided_sign_theorem", "step_bound", "pass_rate_entropy", "state_shift")),
    }
    assert "<img" not in (tmp_path / "out" / "verification.html").read_text(encoding="utf-8")  # of other statements
    assert main(["verify", "--quick", "--only", "no-such-statement"]) == 2
    assert "received 'no-such-statement'" in capsys.readouterr().err
