"""Pages are self-contained and escape what they did not write; figures draw in both themes."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from entropy_theory.report import figures
from entropy_theory.report.figures import drawing
from entropy_theory.report.pages import page

RUNS = [
    {"arm": arm, "seed": seed, "lines": [{"step": s, "entropy": 1 / s, "reward": 0.5} for s in range(1, 8)]}
    for arm in ("GRPO", "<b>Clip</b>")
    for seed in (0, 1)
]
FINALS = {"GRPO": {"entropy": {"mean": 0.2, "half_width": 0.1}}}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_figures_are_the_same_file_twice(theme: figures.Theme) -> None:
    one, two = (figures.to_svg(figures.training_curves(RUNS, FINALS, theme=theme), theme) for _ in range(2))
    assert one == two
    assert one.count("<path") > 10
    assert drawing._PALETTE[theme][0] in one
    assert not re.findall(r'(?:href|src)="(?!#|data:)', one)  # nothing is fetched


def test_panels_without_data_are_left_out() -> None:
    assert len(figures.training_curves(RUNS).axes) == 2  # no run counted distinct right answers


def test_a_saved_figure_has_a_plain_background(tmp_path: Path) -> None:
    path = tmp_path / "figure.png"
    figures.save(figures.training_curves(RUNS), path)
    from matplotlib.image import imread

    assert imread(path)[0, 0].tolist() == [1, 1, 1, 1]


def test_hostile_text_stays_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = "<script>alert(1)</script>"
    picture = page.picture(figures.training_curves, RUNS, alt=f'"{hostile}')
    assert hostile not in picture
    assert "&lt;script&gt;" in picture
    (tmp_path / "out").mkdir()
    import jinja2

    monkeypatch.setattr(
        jinja2, "PackageLoader", lambda _: jinja2.DictLoader({"t.html": "<p>{{ text }}</p>{{ 'x^2'|mathml }}"})
    )
    page.write_page(tmp_path / "out" / "p.html", "t.html", {"text": hostile})
    written = (tmp_path / "out" / "p.html").read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in written
    assert "<msup>" in written
    with pytest.raises(jinja2.UndefinedError):  # a hole in a page is an error, not an empty place
        page.write_page(tmp_path / "out" / "q.html", "t.html", {})
    assert not (tmp_path / "out" / "q.html").exists()


def test_formulas_are_spaced_as_tex_would() -> None:
    formula = ElementTree.fromstring(page.mathml(r"|p| \log p - \operatorname{Cov}_p(p, q)"))
    bars, names = ([e for e in formula.iter() if e.text == text] for text in ("|", "log"))
    assert [bar.get("lspace") for bar in bars] == ["0em", "0em"]
    assert names[0].get("lspace") == "0.17em"
    subscripted = next(e for e in formula.iter() if e.tag.endswith("msub"))
    assert [child.text for child in subscripted] == ["Cov", "p"]  # it must keep two children
