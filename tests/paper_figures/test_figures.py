"""Every paper figure draws from the committed results, legibly, and the gallery page is that of these results."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from paper_figures import gallery, style

FOLDER = Path(gallery.__file__).parent


def figures() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "style", "gallery"))


def drawn(name: str) -> Any:
    with style.style():
        figure = gallery.figure_module(name).draw()
        FigureCanvasAgg(figure).draw()  # lays out
        figure.set_layout_engine("none")
        return figure


def test_gallery_has_every_figure() -> None:
    assert sorted(gallery.ORDER) == figures()


@pytest.mark.parametrize("name", figures())
def test_text_is_whole_and_apart(name: str) -> None:
    """No text leaves the figure, no two labels of an axis meet, and nothing is smaller than print can carry."""
    figure = drawn(name)
    renderer = figure.canvas.get_renderer()
    whole = figure.bbox
    shown = [text for text in figure.findobj(match=Text) if text.get_visible() and text.get_text().strip()]
    assert shown
    for text in shown:
        assert text.get_fontsize() >= 5.5, text.get_text()
    for axis in figure.axes:
        for one in (axis.xaxis, axis.yaxis):
            low, high = sorted(one.get_view_interval())
            ticks = [tick for tick in one.get_major_ticks() if low <= tick.get_loc() <= high]
            labels = [tick.label1 for tick in ticks if tick.label1.get_visible() and tick.label1.get_text().strip()]
            boxes = sorted((label.get_window_extent(renderer) for label in labels), key=lambda box: (box.x0, box.y0))
            for a, b in pairwise(boxes):
                assert not a.overlaps(b), (one.get_label_text(), a, b)
            for text in [*labels, one.label]:
                box = text.get_window_extent(renderer)
                out = max(whole.x0 - box.x0, box.x1 - whole.x1, whole.y0 - box.y0, box.y1 - whole.y1)
                assert not text.get_text() or out <= 1, text.get_text()  # a pixel of antialiasing


def test_a_figure_is_written_in_both_forms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(style, "OUT", tmp_path / "out")
    monkeypatch.setattr(style, "GALLERY", tmp_path / "gallery")
    module = gallery.figure_module("exact_change")
    style.make(module)
    first = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.*")}
    assert {path.as_posix() for path in first} == {
        "out/exact_change.pdf",
        "out/exact_change.png",
        "gallery/exact_change.png",
    }
    pdf = first[Path("out/exact_change.pdf")]
    assert pdf.startswith(b"%PDF")
    assert b"/Subtype /Image" not in pdf  # vectors alone
    style.make(module)
    assert first == {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.*")}


def test_gallery_page_is_that_of_the_committed_results() -> None:
    """Fails when results, captions or figures changed without `make figures`."""
    page = (FOLDER.parent / "docs" / "gallery.md").read_text()
    assert page == gallery.page()
    for name in gallery.ORDER:
        picture = style.GALLERY / f"{name}.png"
        assert picture.stat().st_size < 100_000, name
        assert picture.read_bytes().startswith(b"\x89PNG")
